"""A trained model's folder, made by hand: what is loaded, exported, and said where nothing can be scored."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import transformers

from jobs.evaluation.cards import Protocol, read_cards, write_card
from jobs.evaluation.leaderboard import TableConfig, table
from jobs.experiments.suite import EvaluateAllConfig, evaluate_all
from jobs.inference.hub_folder import ExportConfig, export, without_queues
from jobs.inference.index import EmbedConfig, Embedder, bring_up_to_date
from jobs.inference.model import decode, load
from jobs.run import run_files
from jobs.run.presets import tiny
from pipeline.corpus.ledger import write_ledger
from pipeline.decode.codec import encode_video
from pipeline.records import DecodeError, Reason, Rejected, Stage
from snps3_model.config import VisualConfig
from snps3_model.lora import UP
from tests.cards import card
from tests.made_run import made_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Folder of a run with random weights, whose network looks over time."""
    return made_run(tmp_path)


@pytest.mark.parametrize("part", ["temporal", "bert"])
def test_an_exported_folder_without_a_tensor_is_refused_whatever_part_it_is_of(
    part: str, run: str, tmp_path: Path
) -> None:
    out = export(ExportConfig(run=run, out=str(tmp_path / "model")))
    load(out)
    path = f"{out}/{run_files.WEIGHTS}"
    weights = safetensors.torch.load_file(path)
    lost = next(name for name in weights if name.startswith(f"model.{part}."))
    del weights[lost]
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ValueError, match=lost.removeprefix("model.")):
        load(out)


def test_an_exported_model_has_the_weights_and_cards_of_its_run_and_so_has_its_own_export(
    run: str, tmp_path: Path
) -> None:
    protocol = Protocol(task="retrieval", run=run, manifest=str(tmp_path / "gone.parquet"), split="test")
    own = card(protocol=protocol, weights=run_files.weights_hash(run))
    write_card(own, f"{run}/evaluation/retrieval-test/card.json")
    once = export(ExportConfig(run=run, out=str(tmp_path / "once")))
    twice = export(ExportConfig(run=once, out=str(tmp_path / "twice")))
    for folder in (once, twice):
        assert run_files.weights_hash(folder) == own.weights
        assert read_cards(folder) == read_cards(run) == {"retrieval-test": own}
        assert "[cards/retrieval-test.json]" in Path(folder, "README.md").read_text()
    text = table(TableConfig(runs=(twice,)))  # elsewhere, without the manifest
    assert "gone.parquet, which is not there: retrieval on test" in text
    assert "| **twice** | 50.0 [40.0, 60.0] |" in text


def test_an_exported_tower_with_updates_gives_its_vectors_where_its_folder_is_not(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.SiglipVisionConfig(**sizes, patch_size=16, image_size=64).save_pretrained(tmp_path / "tower")
    visual = VisualConfig(encoder="auto", backbone=str(tmp_path / "tower"), pixels="half", lora_rank=2, pretrained="w")
    run = made_run(tmp_path, visual=visual)
    path = f"{run}/best/{run_files.WEIGHTS}"
    weights = safetensors.torch.load_file(path)
    ups = {name: torch.randn_like(tensor) for name, tensor in weights.items() if name.endswith(UP)}
    assert ups
    safetensors.torch.save_file(weights | ups, path)
    frames = np.random.default_rng(0).integers(0, 2, (1, 4, 64, 64, 4), np.uint8) * 255
    frames[..., 3] = 0
    own = load(run).embed_frames(frames)
    out = export(ExportConfig(run=run, out=str(tmp_path / "model")))
    shutil.rmtree(tmp_path / "tower")
    exported = load(out).embed_frames(frames)
    torch.testing.assert_close(exported.vectors, own.vectors, rtol=1e-6, atol=1e-6)
    safetensors.torch.save_file(weights, path)
    with pytest.raises(FileNotFoundError, match=r"model\.visual\.backbone=.*tower is neither a folder"):
        load(run)


def test_queues_are_not_exported(tmp_path: Path) -> None:
    data = safetensors.torch.save({"model.a": torch.ones(2), "queues.b": torch.ones(3)})
    assert safetensors.torch.load(without_queues(data)).keys() == {"model.a"}


def test_a_video_that_crashes_its_decoder_costs_its_row(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise DecodeError(Reason.CRASHED, "the process that decoded it ended")

    video = tmp_path / "a.mp4"
    video.write_bytes(encode_video(np.zeros((8, 16, 16, 3), np.uint8), fps=4))
    data = tiny().data
    assert decode(str(video), data).shape == (data.num_frames, data.frame_size_px, data.frame_size_px, 4)
    monkeypatch.setattr("pipeline.decode.windows.isolated", crash)
    out = f"{tmp_path}/index"
    embedder = Embedder(run, out, EmbedConfig(run=run, videos=str(tmp_path), out=out))
    parts = pa.table({"part": ["part-0"], "uris": [[str(video)]], "versions": [["1"]]})
    (row,) = embedder(parts).to_pylist()
    assert (row["reason"], row["detail"], row["windows"]) == ("crashed", "the process that decoded it ended", 0)
    write_ledger([Rejected.from_row(row, Stage.EVALUATE)], f"{out}/rejected.parquet")
    assert bring_up_to_date(out, {str(video): "1"}) == set()  # it is tried again


def test_a_table_says_what_is_not_at_hand_where_nothing_is(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    wanted = EvaluateAllConfig(run=run, corpora=str(tmp_path / "none"), is_zero_shot_only=True, out=str(out))
    assert evaluate_all(wanted) == []
    assert "msrvtt retrieval, zero-shot: not run, " in capsys.readouterr().out
    text = out.read_text()
    assert "| ours | not run | not run | not run | |" in text
    assert "SNP-S3-VST | 31.5 | 61.3 | 73.2 | published" in text


def test_a_strangers_folder_that_names_a_plug_in_loads_without_importing_it(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "strangers_module.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for part, field in (("data", "decoder"), ("task", "kind")):
        settings = json.loads(Path(run, "config.json").read_text())
        settings[part][field] = "strangers_module:Reader"
        folder = shutil.copytree(run, tmp_path / field)
        (folder / "config.json").write_text(json.dumps(settings))
        assert load(str(folder)).data.decoder == "auto"
    assert "names the decoder strangers_module:Reader, which is not part of snps3" in caplog.text
    assert "strangers_module" not in sys.modules


@pytest.mark.parametrize("name", ["nope", "owner/nope", "no..pe"])
def test_a_name_that_is_no_folder_and_not_on_the_hub_is_refused_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"^{name} is no folder below .*, nor a model on the hub"):
        load(name)
