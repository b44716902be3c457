"""The field's benchmark: recall as mteb computes it is that of our own dual scores, and chance without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.inference.model import load
from jobs.inference.mteb_model import Direction, MtebModel, retrieval_task
from pipeline.corpus.manifest import make_manifest, write_manifest
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
