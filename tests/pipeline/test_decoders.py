"""A decoder is one entry of a table, or a name from outside; whatever is not installed, PyAV decodes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.run.config import DataConfig, PretrainConfig
from jobs.run.fields import as_dict
from jobs.run.run_identity import config_of
from pipeline.decode import decoders
from pipeline.decode.codec import decode_frames, encode_video, open_video
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.records import Kind

ROOT = Path(__file__).parents[2]
OUTSIDE = """
import numpy as np
from pipeline.decode.fast_video import FastDecoder

def read(data, info, indices):
    if len(indices) == 3:
        raise ArithmeticError("no clip of three frames")
    return np.full((len(indices), info.height, info.width, 3), 77, np.uint8)

PLAIN = FastDecoder(name="plain", read=read, errors=(ArithmeticError,))
"""
SETTINGS = {"kind": Kind.VIDEO, "size_px": 32, "known": None}


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_video(np.random.default_rng(0).integers(0, 255, (12, 24, 32, 3), np.uint8), fps=6)


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package outside the tree with a decoder."""
    package = tmp_path / "outside_decoding"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plain.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "outside_decoding.plain:PLAIN"


def test_a_decoder_from_outside_decodes_in_the_isolated_process(outsider: str, tmp_path: Path, video: bytes) -> None:
    code = (
        "import sys; from pipeline.decode.codec import decode_frames\n"
        "from pipeline.decode.isolation import Limits, isolated\n"
        f"frames = isolated(decode_frames, open(sys.argv[1], 'rb').read(), limits=Limits(), decoder={outsider!r},"
        "kind='video', num_frames=4, size_px=32)\n"
        "print(frames.shape, set(frames.ravel().tolist()))"
    )
    path = tmp_path / "clip.mp4"
    path.write_bytes(video)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-c", code, str(path)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed == "(4, 24, 32, 3) {77}\n"


def test_pyav_decodes_where_a_decoder_from_outside_gives_up(outsider: str, video: bytes) -> None:
    by_pyav = decode_frames(video, decoder="pyav", num_frames=3, **SETTINGS)
    np.testing.assert_array_equal(decode_frames(video, decoder=outsider, num_frames=3, **SETTINGS), by_pyav)


def test_a_decoder_from_outside_is_named_by_entry_point(
    outsider: str, video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside-1.dist-info").mkdir()
    (tmp_path / "outside-1.dist-info" / "METADATA").write_text("Name: outside\nVersion: 1\n")
    (tmp_path / "outside-1.dist-info" / "entry_points.txt").write_text(f"[snps3.decoders]\nplain = {outsider}\n")
    decoders._entry_points.cache_clear()
    assert DataConfig(decoder="plain").decoder == "plain"
    assert (decode_frames(video, decoder="plain", num_frames=4, **SETTINGS) == 77).all()
    monkeypatch.undo()
    decoders._entry_points.cache_clear()
    with pytest.raises(ValueError, match="there is no decoder 'plain'; choose one of decord, pyav"):
        DataConfig(decoder="plain")


def test_a_strangers_configuration_imports_nothing(
    outsider: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sys.modules.pop("outside_decoding", None)
    config = PretrainConfig(name="one", data=DataConfig(decoder=outsider))
    (tmp_path / "config.json").write_text(json.dumps(as_dict(config)))
    assert config_of(str(tmp_path)) == dataclasses.replace(config, data=DataConfig(decoder="auto"))
    assert f"names the decoder {outsider}, which is not part of snps3: auto decodes instead" in caplog.text
    assert "outside_decoding" not in sys.modules


def test_a_name_from_outside_that_does_not_load_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"decoder no_such\.package:NAME does not load: No module named 'no_such'"):
        decoders.load("no_such.package:NAME")
    with pytest.raises(ValueError, match=r"decoder json:NAME does not load \(module 'json' has no attribute 'NAME'\)"):
        decoders.load("json:NAME")


def test_without_decord_pyav_probes_and_decodes(tmp_path: Path, video: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(video)
    code = """
import sys
sys.modules["decord"] = None
import pyarrow as pa
import jobs.corpus.deduplication, jobs.reports.corpus
from jobs.corpus.preparation import PrepareConfig
from jobs.inference.model import decode
from jobs.run.config import DataConfig
from jobs.run.run_identity import with_decoder
from pipeline.decode import decoders
from pipeline.decode.codec import probe
PrepareConfig(corpus="toy", root=sys.argv[1], out=sys.argv[1])
assert with_decoder(DataConfig(), "decord").decoder == "pyav"
data = open(f"{sys.argv[1]}/clip.mp4", "rb").read()
print(probe(data, kind="video", start_seconds=None, end_seconds=None, decoder="auto")["num_frames"])
print(decode(f"{sys.argv[1]}/clip.mp4", DataConfig()).shape)
try:
    decoders.load("decord")
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    assert printed[:2] == ["12", "(4, 48, 48, 4)"]
    assert printed[2].startswith("the decoder decord needs a package: pip install decord==0.6.0")


def test_auto_is_the_same_decoder_in_another_process(video: bytes) -> None:
    apart = isolated(decode_frames, video, limits=Limits(), num_frames=4, **SETTINGS)
    np.testing.assert_array_equal(
        apart, decode_frames(video, decoder=decoders.resolve("auto"), num_frames=4, **SETTINGS)
    )


def test_every_choice_opens_a_video_or_says_why_not(video: bytes) -> None:
    assert {"pyav"} <= set(decoders.loadable()) <= set(decoders.CHOICES)
    for name in decoders.loadable():
        with open_video(video, name) as opened:
            assert opened.info.num_frames == 12
