"""The page "From long videos to a searchable model" by its own commands: ten films in a bucket, without captions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from endpoint import StubEndpoint, serving

from jobs.benchmarks.moments import JoinedClip, write_long_files
from pipeline import storage
from pipeline.corpus.manifest import read_manifest
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus
from pipeline.synthetic.render import RGB_BY_COLOUR

# Six starts of Ray and a run of twenty steps take three minutes.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly]
ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "tutorials" / "from-long-videos.md"
NUM_FILMS, NUM_CLIPS, FPS = 10, 120, 6
COLOURS = np.array(list(RGB_BY_COLOUR.values()), np.float32)
FAR = 35.0
"""Distance in RGB from which a pixel has none of the colours."""
NOTHING = "a grey wall"


def colours_in(frames: np.ndarray) -> str:
    """Return a caption with the colour that most pixels have of those of things; frames uint8 (T, H, W, 3)."""
    distance = np.linalg.norm(frames.reshape(-1, 1, 3).astype(np.float32) - COLOURS, axis=-1)
    counts = np.bincount(distance.argmin(-1)[distance.min(-1) < FAR], minlength=len(COLOURS))
    return f"a {list(RGB_BY_COLOUR)[counts.argmax()]} thing moves" if counts.any() else NOTHING


def blocks() -> list[str]:
    """Return the commands of the page, a text per block."""
    return re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def films(folder: Path) -> list[JoinedClip]:
    """Write ten films of a minute, and return where each clip lies in them."""
    sizes = {
        "num_train_videos": NUM_CLIPS,
        "num_train_images": 0,
        "num_val": 1,
        "num_test": 1,
        "num_temporal_groups": 1,
    }
    make_corpus(CorpusConfig(**sizes, num_frames=3 * FPS, fps=FPS, captions_per_clip=1), folder / "corpus")
    lines = (folder / "corpus" / "annotations" / "train.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    uris = [str(folder / "corpus" / row["clip_name"]) for row in rows]
    table = pa.table({"uri": uris, "captions": [[row["caption"]] for row in rows]})
    return write_long_files(folder / "films", table, NUM_FILMS, seed=0)


def test_the_variables_of_the_page_are_those_that_it_tells_to_set() -> None:
    told = PAGE.read_text().partition("```")[0]
    assert set(re.findall(r"\$(\w+)", "".join(blocks()))) <= set(re.findall(r"`([A-Z_]+)`", told))


def test_ten_films_without_captions_become_a_model_that_finds_moments(bucket: str, tmp_path: Path) -> None:
    clips = films(tmp_path)
    for path in (tmp_path / "films").iterdir():
        storage.write_bytes_atomic(f"{bucket}/films/{path.name}", path.read_bytes())
    stub = StubEndpoint(read=colours_in)
    with serving(stub) as url:
        said = said_by_the_page(tmp_path, VIDEOS=f"{bucket}/films", WORK=f"{bucket}/work", ENDPOINT=url, MODEL="stub",
                                OPENAI_API_KEY=stub.key)  # fmt: skip
    rows = read_manifest(f"{bucket}/work/captioned/manifest.parquet").table.to_pylist()
    found = {(Path(row["uri"]).name, round(row["start_seconds"] * FPS), round(row["end_seconds"] * FPS)): row
             for row in rows}  # fmt: skip
    seen = [(clip, found[key]) for clip in clips if (key := key_of(clip)) in found]
    assert len(seen) >= 0.9 * NUM_CLIPS  # clips that follow a wall of nearly their own colour have no cut
    named = [row["captions"][0].split()[1] in clip.caption for clip, row in seen]
    assert np.mean(named) >= 0.95  # the edges of a small red thing are orange
    assert NOTHING not in {caption for row in rows for caption in row["captions"]}
    assert {row["split"]: set() for row in rows}.keys() == {"train", "val", "test"}
    assert all(row["split"] == split_of(Path(row["uri"]).name) for row in rows)

    answers = re.findall(r"^ *-?[\d.]+ +-?[\d.]+ +([\d.]+)–([\d.]+) s +(\S+)$", said[-1], re.MULTILINE)
    ends = {f"{bucket}/films/{clip.name}": clip.end_seconds for clip in clips}
    assert len(answers) == 5
    assert all(0 <= float(start) < float(end) <= ends[uri] + 0.05 for start, end, uri in answers)


def said_by_the_page(folder: Path, **variables: str) -> list[str]:
    """Return what each block of the page prints, run in `folder` as in a shell in which the installation is active."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_TRACK"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), **variables}
    said = []
    for block in blocks():
        command = ["bash", "-e", "-c", block]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    return said


def key_of(clip: JoinedClip) -> tuple[str, int, int]:
    return clip.name, round(clip.start_seconds * FPS), round(clip.end_seconds * FPS)


def split_of(film: str) -> str:
    return "train" if film < "07" else "val" if film < "08" else "test"
