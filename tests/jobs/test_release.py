"""The model that ships: small enough, the same again, with the scores of its own weights, and loaded by its name."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from jobs.benchmarks.support.fixtures import manifest_row
from jobs.benchmarks.support.one_process import in_one_process
from jobs.evaluation import scoring
from jobs.evaluation.cards import read_card
from jobs.inference import release as module
from jobs.inference.hub_folder import ExportConfig, export
from jobs.inference.model import RELEASED, TINY, decode_unnamed, load
from jobs.inference.modeling_snps3 import SNPS3Model
from jobs.inference.release import CARD, COPIED, MAX_BYTES, SCORES, ReleaseConfig, as_float16, find_changes, release
from jobs.inference.release_card import SHOWN
from jobs.release import main
from jobs.run import run_files
from jobs.run.fields import as_dict
from jobs.run.presets import tiny
from jobs.run.run_identity import config_of
from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.synthetic.clips import CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.render import render_video
from snps3_model.metrics import fuse, recall_at

SHIPPED = RELEASED / TINY
WHOLE = CorpusConfig(num_train_videos=1, num_train_images=0, num_val=1, num_temporal_groups=1)
"""The embedded corpus with all its clips of the test split; the numbers of other splits do not change these."""


def film(clip: SceneClip) -> bytes:
    """The video of a clip, as in the corpus."""
    return encode_video(render_video(clip.scene, num_frames=WHOLE.num_frames, size_px=WHOLE.size_px), fps=WHOLE.fps)


def test_what_ships_is_small_has_a_licence_and_says_what_it_knows() -> None:
    assert (SHIPPED / run_files.WEIGHTS).stat().st_size < MAX_BYTES
    page = (SHIPPED / "README.md").read_text()
    assert "license: apache-2.0" in page
    assert "It knows only the embedded corpus" in page
    tensors = safetensors.torch.load_file(SHIPPED / run_files.WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert f"{sum(tensor.numel() for tensor in tensors.values()):,} parameters" in page
    assert re.search(r"^git checkout [0-9a-f]{12}\nmake pretrain$", page, re.MULTILINE)


def test_the_shown_scores_are_those_of_the_card_and_the_card_is_of_these_weights() -> None:
    own = read_card(str(SHIPPED / CARD))
    assert own.weights == run_files.weights_hash(str(SHIPPED))
    assert not own.caveats
    scores, page = json.loads((SHIPPED / SCORES).read_text()), (SHIPPED / "README.md").read_text()
    assert own.weights in page
    assert own.scores.items() <= scores["shipped"].items()
    for title, name in SHOWN:
        shipped, run = scores["shipped"], scores["run"]
        low, high = shipped[f"{name}_low"], shipped[f"{name}_high"]
        assert f"| {title} | {shipped[name]:.3f} [{low:.3f}, {high:.3f}] | {run[name]:.3f} |" in page
        assert abs(shipped[name] - run[name]) <= 0.02, "float16 costs no score"


def test_no_shipped_file_holds_a_date_or_a_path_of_a_machine() -> None:
    for path in SHIPPED.rglob("*.json"):
        assert not re.search(r'"(/|s3://)|20\d\d-\d\d-\d\d', path.read_text()), path
    assert not re.search(r"20\d\d-\d\d-\d\d|/work/|/home/|/tmp/", (SHIPPED / "README.md").read_text())


def test_the_shipped_model_finds_the_clips_of_the_test_split_as_its_card_says() -> None:
    model, clips = load(TINY), [clip for clip in clips_of(WHOLE) if clip.split == "test"]
    texts = [clip.captions[0].text for clip in clips]
    videos = model.embed_frames(np.stack([decode_unnamed(film(clip), model.data) for clip in clips]))
    queries = model.embed_texts(texts)
    dual, cross = model.dual_scores(queries, videos).numpy(), model.match(queries, videos).detach().numpy()
    relevant = np.array(texts)[:, None] == np.array(texts)[None, :]
    expected = read_card(str(SHIPPED / CARD)).scores
    for name, scores in {"dual_r1": dual, "cross_r1": cross, "r1": fuse(dual, cross)}.items():
        # another processor rounds otherwise, which moves a clip or two across a tie
        assert recall_at(1, scores, relevant) == pytest.approx(expected[f"test/t2v/{name}"], abs=0.01), name


def test_transformers_computes_with_the_exported_shipped_model_in_float32(tmp_path: Path) -> None:
    folder = export(ExportConfig(run=TINY, out=f"{tmp_path}/model"))
    assert run_files.weights_hash(folder) == run_files.weights_hash(str(SHIPPED))
    assert (tmp_path / "model" / CARD).read_bytes() == (SHIPPED / CARD).read_bytes()
    network, own = SNPS3Model.from_pretrained(folder).eval(), load(TINY)
    assert network.dtype == torch.float32
    ids, mask = own.text.tokens(["a red ring rises"])
    torch.testing.assert_close(network.get_text_features(ids, mask), own.embed_texts(["a red ring rises"]).vectors)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a run of `tiny` on a few clips, with the words and nearly the weights of the shipped one."""
    root = tmp_path_factory.mktemp("release")
    folder = root / "runs" / "tiny"
    (folder / "best").mkdir(parents=True)
    rows = []
    for clip in clips_of(CorpusConfig(num_train_videos=3, num_train_images=0, num_val=2, num_test=4)):
        if clip.split != "temporal" or clip.group in ("g000", "g001"):
            (root / f"{clip.split}-{len(rows)}.mp4").write_bytes(film(clip))
            row = manifest_row("small", root / f"{clip.split}-{len(rows)}.mp4", clip.captions[0].text, clip.split)
            rows.append(row | {"group": clip.group})
    manifest = make_manifest("small", str(root), rows)
    write_manifest(manifest, path := f"{root}/manifest.parquet")
    weights = safetensors.torch.load_file(SHIPPED / run_files.WEIGHTS)
    weights = {name: tensor.float() * (1 + 1e-6) for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, folder / "best" / run_files.WEIGHTS)
    for name in COPIED:
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    known = json.loads((folder / run_files.IDENTITY).read_text())
    known["fields"]["data.manifest_hash"] = manifest.hash
    run_files.write_json(f"{folder}/{run_files.IDENTITY}", known)
    config = as_dict(tiny())
    config["data"] |= {"manifest": path, "decoder": "pyav"}
    run_files.write_json(f"{folder}/config.json", config)
    facts = {"commit": "0123456789ab", "hardware": "a processor", "num_parameters": 549_881}
    run_files.write_json(f"{folder}/results.json", facts | {name: 0.25 for _, name in SHOWN})
    return str(folder)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate in this process, without MLflow."""
    monkeypatch.setattr(module, "connected_ray", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(scoring, "log", lambda *_: None)
    with in_one_process():
        yield


def test_a_run_gives_the_same_bytes_again_and_another_run_is_told_apart(
    run: str, no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = release(ReleaseConfig(run=run, out=f"{tmp_path}/a"))
    assert main([run, out, "--check"]) == 0
    assert "byte by byte" in capsys.readouterr().out
    files = {path.relative_to(out).as_posix() for path in Path(out).rglob("*") if path.is_file()}
    assert files == {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*") if path.is_file()}
    machine = str(Path(run).parent.parent).encode()
    assert not [path for path in files if re.search(machine + b"|/tmp", Path(out, path).read_bytes())]
    assert config_of(out).data.manifest == tiny().data.manifest
    shown = read_card(f"{out}/{CARD}")
    assert shown.weights == run_files.weights_hash(out)
    assert (shown.num_videos, shown.num_trained_on, shown.protocol.run) == (4, 0, TINY)
    assert "| text to video, R@1 | " in Path(out, "README.md").read_text()
    assert "| 0.250 |\n" in Path(out, "README.md").read_text()
    weights = safetensors.torch.load_file(f"{out}/{run_files.WEIGHTS}")
    safetensors.torch.save_file({name: -tensor for name, tensor in weights.items()}, f"{out}/{run_files.WEIGHTS}")
    Path(out, "stranger.txt").write_text("")
    Path(out, CARD).unlink()
    assert find_changes(ReleaseConfig(run=run, out=out)) == [
        f"{CARD}: only made now",
        f"{run_files.WEIGHTS}: differs",
        "stranger.txt: only there",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"results.json": None}, r"has no scores: it holds no results\.json; train it to its end"),
        ({"results.json": {"commit": "0123456789ab-dirty"}}, r"0123456789ab-dirty code.*commit every change"),
        ({"results.json": {"commit": "unknown"}}, r"unknown code.*commit every change"),
        ({"config.json": {"seed": 3}}, r"is no run of `make pretrain`: seed: was 0, is 3; train one without options"),
    ],
)
def test_a_run_that_cannot_be_repeated_is_refused(
    changes: dict[str, dict[str, Any] | None], words: str, run: str, tmp_path: Path
) -> None:
    for name in ("config.json", "results.json"):
        values = changes.get(name, {})
        if values is not None:
            run_files.write_json(f"{tmp_path}/{name}", run_files.read_json(f"{run}/{name}") | values)
    with pytest.raises(ValueError, match=words):
        release(ReleaseConfig(run=str(tmp_path), out=f"{tmp_path}/out"))


def test_a_folder_with_a_model_is_not_written_over_and_one_without_is_not_compared(run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a model already; delete it or take another folder, or .* --check"):
        release(ReleaseConfig(run=run))
    with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist"):
        find_changes(ReleaseConfig(run=run, out=f"{tmp_path}/nowhere"))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([1.0, -70_000.0]), r"w has values up to 70000, and float16 ends at 65504"),
        (torch.zeros(2**20), r"the weights take 2,097,2\d\d bytes, and 2,097,152 may ship"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_float16(safetensors.torch.save({"w": tensor}))


def test_only_floating_point_tensors_become_float16_each_to_its_nearest() -> None:
    values = torch.linspace(-3, 3, 1001)
    stored = safetensors.torch.load(as_float16(safetensors.torch.save({"a": values, "b": torch.arange(3)})))
    assert stored["b"].dtype == torch.int64
    assert np.array_equal(stored["a"].numpy(), values.numpy().astype(np.float16))
