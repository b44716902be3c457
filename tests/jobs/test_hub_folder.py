"""An exported folder where this package is not: the same cosines and scores, by Transformers and its own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluation.cards import Protocol, write_card
from jobs.inference.hub_folder import ExportConfig, export
from jobs.inference.model import load, padded
from jobs.run import run_files
from tests.cards import card
from tests.made_run import made_run

TEXTS = ["a red ring rises", "two shapes meet", "a blue star falls " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("hub")
    return export(ExportConfig(run=made_run(root), out=f"{root}/model", programs=True))


def test_a_stranger_without_this_package_and_network_gets_the_same_scores(folder: str, tmp_path: Path) -> None:
    model = load(folder)
    size, count = model.data.frame_size_px, model.data.num_frames
    frames = np.random.default_rng(0).integers(0, 256, (2, count, size // 2, size, 3), np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    script = Path(__file__).with_name("hub_stranger.py")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", str(script), folder, f"{tmp_path}/frames.npy", *TEXTS],
        env=variables | {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{tmp_path}/hub"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    videos = model.embed_frames(np.stack([padded(clip, size) for clip in frames]))
    texts = model.embed_texts(TEXTS)
    cosines = torch.einsum("qd,ctd->qct", texts.vectors, videos.vectors)
    here = {"cosines": cosines, "match": model.match(texts, videos), "dual": model.dual_scores(texts, videos)}
    for name, values in here.items():
        torch.testing.assert_close(torch.tensor(there[name]), values, atol=1e-6, rtol=1e-6, msg=name)


def test_a_release_is_the_same_to_the_bit_and_its_card_has_the_scores_of_the_run(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    own = card(
        protocol=Protocol(task="retrieval", run=run, manifest="gone", split="test"), weights=run_files.weights_hash(run)
    )
    write_card(own, f"{run}/evaluation/retrieval-test/card.json")
    once, twice = (Path(export(ExportConfig(run=run, out=f"{tmp_path}/{name}"))) for name in ("once", "twice"))
    files = {path.relative_to(once): path.read_bytes() for path in once.rglob("*") if path.is_file()}
    assert files == {path.relative_to(twice): path.read_bytes() for path in twice.rglob("*") if path.is_file()}
    shown = (once / "README.md").read_text()
    for name, value in own.means.items():
        if ends := own.interval(name):
            assert f"| {name} | {value:.3f} | {ends[0]:.3f} to {ends[1]:.3f} |" in shown
    assert "license: apache-2.0" in shown


@pytest.mark.parametrize(("rows", "words", "frames"), [(1, 3, 2), (3, 9, 4), (7, 17, 8)])
def test_the_programs_of_a_folder_compute_what_the_network_does_whatever_the_sizes(
    rows: int, words: int, frames: int, folder: str
) -> None:
    model = load(folder)
    text, video, match = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("text", "video", "match"))
    ids, mask = torch.randint(0, 50, (rows, words)), torch.ones(rows, words, dtype=torch.bool)
    mask[0, -1] = False
    pixels = torch.randn(rows, frames, 3, model.data.shown_px, model.data.shown_px)
    padding = torch.zeros(rows, frames, *pixels.shape[-2:], dtype=torch.bool)
    padding[..., -9:] = True
    with torch.no_grad():
        clips = model.network.encode_video(pixels, padding)
        expected = [model.network.encode_text(ids, mask).vector, clips.tokens, clips.vectors]
        expected.append(model.network.score(ids, mask, clips.tokens))
        given = [text(ids, mask), *video(pixels, padding), match(ids, mask, clips.tokens)]
    for value, other in zip(given, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-4, rtol=0)
