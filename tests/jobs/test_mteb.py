"""The field's benchmark: recall as mteb computes it is that of our own dual scores, and chance without training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from jobs import evaluate
from jobs.evaluation import mteb_cards
from jobs.evaluation.leaderboard import TableConfig, table
from jobs.inference.model import load
from jobs.inference.mteb_evaluation import find_task, load_data
from jobs.inference.mteb_model import Direction, MtebModel, retrieval_task
from jobs.run import run_files
from pipeline.corpus.manifest import make_manifest, open_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.synthetic.clips import CorpusConfig, clips_of
from pipeline.synthetic.render import render_video
from snps3_model.metrics import placements, recalls_at
from tests.made_run import made_run

NUM_CLIPS = 40
mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'snps3-ray[mteb]'")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("mteb")
    rows = []
    for number, clip in enumerate(clip for clip in clips_of(CorpusConfig()) if clip.split == "test"):
        if number == NUM_CLIPS:
            break
        path = root / f"{number}.mp4"
        path.write_bytes(encode_video(render_video(clip.scene, num_frames=12, size_px=64), fps=6))
        facts = {"width": 64, "height": 64, "num_frames": 12, "bytes": path.stat().st_size, "checksum": "c"}
        rows.append(
            {
                "clip_id": number,
                "uri": str(path),
                "captions": [clip.captions[0].text],
                "kind": "video",
                "split": "test",
                **facts,
            }
        )
    path = root / "manifest.parquet"
    write_manifest(make_manifest("mteb", str(root), rows), str(path))
    return str(path)


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_recall_is_that_of_our_own_dual_scores(direction: Direction, manifest: str, tmp_path: Path) -> None:
    run = made_run(tmp_path)
    task = retrieval_task(manifest, "test", direction)
    data = task.dataset["default"]["test"]
    texts, videos = (data[part] for part in (("queries", "corpus") if direction == "t2v" else ("corpus", "queries")))
    model = load(run)
    scores = model.dual_scores(model.embed_texts([*texts["text"]]), model.embed_videos([*videos["video"]])).numpy()
    placed = placements(scores if direction == "t2v" else scores.T, np.eye(NUM_CLIPS, dtype=bool))
    (result,) = mteb.evaluate(MtebModel(run), task, cache=None, encode_kwargs={"show_progress_bar": False}).task_results
    (there,) = result.scores["test"]
    for k in (1, 5, 10):
        assert there[f"recall_at_{k}"] == pytest.approx(recalls_at(k, placed).mean(), abs=1e-6)
    assert there["recall_at_1"] <= 0.2  # of random weights: chance is 1 in 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_run(tmp_path_factory.mktemp("run"))


def evaluated(run: str, task: str, *options: str) -> mteb_cards.MtebCard:
    """Return the card that the command writes."""
    storage = f"{Path(run).parent}/runs"
    assert evaluate.main([run, "--mteb", task, "--placement.storage", storage, *options]) == 0
    return mteb_cards.read_card(f"{run}/evaluation/mteb-{task}.json")


def test_the_command_scores_a_manifest_with_mteb(run: str, manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    card = evaluated(run, "ManifestT2V", "--manifest", manifest)
    assert card.mteb == mteb.__version__
    assert card.dataset_revision == open_manifest(manifest).hash
    assert card.weights == run_files.weights_hash(run)
    assert (card.num_queries, card.num_videos, card.num_texts) == (NUM_CLIPS, NUM_CLIPS, NUM_CLIPS)
    assert card.scores[card.main_score] == card.scores["recall_at_1"] <= card.scores["recall_at_10"]
    assert f"{NUM_CLIPS} videos, {NUM_CLIPS} texts" in capsys.readouterr().out


def test_rows_of_another_number_than_the_1000_clips_are_in_a_table_of_their_own(
    run: str, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset
    from mteb.get_tasks import _TASKS_REGISTRY
    from mteb.tasks.retrieval.eng.msr_vtt import MSRVTTT2V

    clips = retrieval_task(manifest, "test", "t2v").dataset["default"]["test"]
    media = [{"bytes": Path(path).read_bytes(), "path": path} for path in clips["corpus"]["video"]]
    (folder := tmp_path / "MSR-VTT").mkdir()
    rows = {"video": media, "caption": [*clips["queries"]["text"]]}
    Dataset.from_dict(rows).to_parquet(folder / "test-00000.parquet")

    class Local(MSRVTTT2V):
        metadata = MSRVTTT2V.metadata.model_copy(
            update={"name": "LocalT2V", "dataset": {"path": str(folder), "revision": "main"}}
        )

    monkeypatch.setitem(_TASKS_REGISTRY, "LocalT2V", Local)
    card = evaluated(run, "LocalT2V")
    ours = evaluated(run, "ManifestT2V", "--manifest", manifest)
    assert card.scores == pytest.approx(ours.scores, abs=1e-6)  # their loader and ours: the same clips
    assert card.dataset_revision == "main"
    caveat = f"{NUM_CLIPS} of 1,000 videos: another test set than theirs"
    assert card.caveats == [caveat, "overlap with training clips not checked"]
    _, *sections = table(TableConfig(runs=(run,))).split("\n## ")
    titles = {section.partition("\n")[0]: section for section in sections}
    assert "**made**" not in titles["MSR-VTT 7K, text to video"] + titles["MSR-VTT 9K, text to video"]
    assert caveat in titles[f"LocalT2V of mteb, {NUM_CLIPS} videos"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MSRVTTT2W", "is no task of mteb; did you mean MSRVTTT2V?"),
        ("MSRVTTT2VA", "is a task of mteb, but no text-video retrieval; did you mean MSRVTTT2V?"),
        ("Banking77Classification", "is a task of mteb, but no text-video retrieval"),
    ],
)
def test_other_tasks_are_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        find_task(name)


def test_data_that_cannot_be_reached_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    task = find_task("MSRVTTT2V")
    with pytest.raises(ValueError, match=r"cannot be reached .* hf download mteb/MSR-VTT --repo-type dataset"):
        load_data(task)


def test_clips_of_the_manifest_alone_take_a_split(run: str) -> None:
    with pytest.raises(ValueError, match="--split test has no effect with --mteb MSRVTTT2V"):
        evaluate.main([run, "--mteb", "MSRVTTT2V", "--split", "test"])
