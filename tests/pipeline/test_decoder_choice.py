"""The decoder of a corpus is the one that reads its own clips fastest, and stands in its manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jobs.run.config import DataConfig, PretrainConfig
from jobs.run.run_identity import with_decoder
from pipeline.corpus.manifest import Manifest, make_manifest, read_manifest, write_manifest
from pipeline.decode.codec import encode_video, open_video
from pipeline.decode.config import Limits
from pipeline.decode.decoder_choice import measure_decoders
from pipeline.decode.decoders import loadable

MEASURED = {"decord": {"seconds": 0.1, "cpu_seconds": 0.4}, "pyav": {"seconds": 0.3, "cpu_seconds": 0.2}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for number in range(3):
        data = encode_video(np.full((8, 32, 32, 3), 40 * number, np.uint8), fps=8)
        (folder / f"{number}.mp4").write_bytes(data)
        with open_video(data, "pyav") as video:
            known = dataclasses.asdict(video.info)
        row = {"clip_id": number, "uri": str(folder / f"{number}.mp4"), "captions": ["a"], "kind": "video"}
        rows.append(row | known | {"split": "train", "bytes": len(data), "checksum": ""})
    return make_manifest("toy", str(folder), rows)


def test_every_decoder_that_loads_is_timed(manifest: Manifest) -> None:
    found = measure_decoders(manifest.table, Limits())
    assert list(found) == loadable()
    assert all(seconds > 0 for times in found.values() for seconds in times.values())
    assert measure_decoders(manifest.table.slice(0, 0), Limits()) == {}


def test_a_decoder_that_fails_on_a_clip_is_left_out(manifest: Manifest) -> None:
    rows = manifest.table.to_pylist()
    rows[1] |= {"start_seconds": 50.0}
    assert measure_decoders(make_manifest("toy", "", rows).table, Limits()) == {}


def test_the_measured_times_travel_with_the_manifest_and_change_no_hash(manifest: Manifest, tmp_path: Path) -> None:
    path = str(tmp_path / "manifest.parquet")
    write_manifest(manifest, path)
    assert read_manifest(path).fastest_decoder is None
    write_manifest(dataclasses.replace(manifest, decoders=MEASURED), path)
    read = read_manifest(path)
    assert read.decoders == MEASURED
    assert read.fastest_decoder == "pyav"
    assert read.hash == manifest.hash


@pytest.mark.parametrize(
    ("asked", "fastest", "taken"), [("auto", None, "pyav"), ("auto", "pyav", "pyav"), ("decord", "pyav", "decord")]
)
def test_auto_is_the_measured_decoder_and_a_named_one_is_kept(asked, fastest, taken) -> None:
    config = PretrainConfig(name="one", data=DataConfig(decoder=asked))
    assert with_decoder(config.data, fastest).decoder == taken
