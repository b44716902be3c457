"""An index of windows: which there are, what is embedded of each, and what a change of the folder costs."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch

from jobs.inference.index import EmbedConfig, claim, refuse_too_many
from jobs.inference.index_files import parts_in, remove_part
from jobs.inference.local_index import embed_here
from jobs.inference.model import decode, load, windows
from jobs.inference.query import SearchConfig, search
from jobs.run import run_files
from jobs.run.presets import tiny
from pipeline import storage
from pipeline.decode.codec import decode_frames, encode_image, encode_video
from pipeline.decode.config import Limits
from pipeline.decode.windows import WINDOWS_AT_ONCE, spans_of
from pipeline.records import Kind
from tests.made_run import made_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Folder of a run with random weights."""
    return made_run(tmp_path)


def film(seconds: int, fps: int = 4, seed: int = 0) -> bytes:
    frames = np.random.default_rng(seed).integers(0, 256, (seconds, 1, 1, 3), np.uint8)
    return encode_video(frames.repeat(fps, 0).repeat(32, 1).repeat(48, 2), fps=fps, gop=8)


def versions_of(folder: Path) -> dict[str, str]:
    return {f"{folder}/{path}": version for path, version in storage.file_versions(str(folder)).items()}


def index(config: EmbedConfig) -> list[str]:
    """As `embed`, without Ray. Return the names of the videos that were embedded."""
    return [Path(uri).name for uri in embed_here(config)]


@pytest.mark.parametrize(("window", "stride"), [(10.0, 5.0), (4.0, 4.0), (3.0, 0.7), (1.0, 1.0)])
@pytest.mark.parametrize("duration", [0.4, 4.0, 10.0, 10.2, 61.3])
def test_windows_cover_each_second_and_none_lies_in_another(window: float, stride: float, duration: float) -> None:
    spans = spans_of(duration, window, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == duration
    assert all(end < duration for _, end in spans[:-1])
    assert all(later[0] <= earlier[1] for earlier, later in itertools.pairwise(spans))


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_a_windows_frames_are_those_of_the_same_clip(tmp_path: Path, decoder: str) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    path, data = tmp_path / "film.mp4", dataclasses.replace(tiny().data, decoder=decoder)
    path.write_bytes(film(WINDOWS_AT_ONCE + 6))
    chunks = list(windows(str(path), data, Limits(), 2.0, 1.0))
    assert [len(spans) for spans, _ in chunks] == [WINDOWS_AT_ONCE, 5]
    for spans, frames in chunks:
        for place in (0, len(spans) - 1):
            start, end = spans[place]
            clip = decode_frames(
                path.read_bytes(),
                kind=Kind.VIDEO,
                num_frames=data.num_frames,
                size_px=data.frame_size_px,
                sampling=data.sampling,
                start_seconds=start,
                end_seconds=end,
                decoder=decoder,
            )
            height = clip.shape[1]
            np.testing.assert_array_equal(frames[place, :, :height, :, :3], clip)
            assert (frames[place, :, height:, :, 3] == 1).all()
    ((_, whole),) = windows(str(path), data, Limits(), None, 5.0)
    np.testing.assert_array_equal(whole[0], decode(str(path), data))


def test_an_index_embeds_what_is_new_and_drops_what_is_gone(run: str, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "index"
    videos.mkdir()
    for number, name in enumerate("abc"):
        (videos / f"{name}.mp4").write_bytes(film(5, seed=number))
    (videos / "still.png").write_bytes(encode_image(np.zeros((8, 8, 3), np.uint8), quality=90))
    config = EmbedConfig(run=run, videos=str(videos), out=str(out), window_seconds=2.0, stride_seconds=1.0)
    assert index(config) == ["a.mp4", "b.mp4", "c.mp4", "still.png"]
    assert index(config) == []
    os.rename(videos / "a.mp4", videos / "renamed.mp4")
    (videos / "b.mp4").write_bytes(film(3, seed=7))
    (videos / "c.mp4").unlink()
    assert index(config) == ["b.mp4"]
    assert index(config) == []
    rows = pa.concat_tables(storage.read_table(path) for path in parts_in(str(out))).to_pylist()
    times = {
        name: [row["start_seconds"] for row in rows if Path(row["uri"]).name == name] for name in os.listdir(videos)
    }
    assert times == {"renamed.mp4": [0, 1, 2, 3], "b.mp4": [0, 1], "still.png": [0]}
    assert len(rows) == 7
    assert all(row["strip"].startswith(b"\xff\xd8") for row in rows)

    model = load(run)
    found = search(SearchConfig(index=str(out), text="a red ring rises", num_results=7))
    moment = next(moment for moment in found if Path(moment.uri).name == "renamed.mp4")
    ((_, frames),) = windows(moment.uri, model.data, Limits(), 2.0, 1.0)
    assert moment.start_seconds is not None
    place = int(moment.start_seconds)
    alone = model.embed_frames(frames[place : place + 1])
    texts = model.embed_texts(["a red ring rises"])
    assert moment.dual == pytest.approx(model.dual_scores(texts, alone).item(), abs=1e-4)
    assert moment.cross == pytest.approx(model.match(texts, alone).item(), abs=1e-4)
    assert moment.span == f"{place}.0–{place + 2}.0 s"
    with pytest.raises(ValueError, match=r"another window_seconds: 2.0, not 4.0.*take another --out"):
        claim(dataclasses.replace(config, window_seconds=4.0), config.videos, config.out)


def test_windows_that_leave_seconds_out_and_workers_that_find_no_cpu_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"0 < stride_seconds <= window_seconds.*got 6.0 and 5.0"):
        EmbedConfig(run="run", videos="videos", out="out", window_seconds=5.0, stride_seconds=6.0)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.0})
    config = EmbedConfig(run="run", videos="videos", out="out", num_workers=2, decode_cpus=2)
    with pytest.raises(ValueError, match="2 workers × 2 CPUs and 0 GPUs are more than the cluster's 3 CPUs"):
        refuse_too_many(config)
    refuse_too_many(dataclasses.replace(config, decode_cpus=1))


def test_an_index_without_windows_is_searched_and_not_added_to(run: str, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "index"
    videos.mkdir()
    for number in range(2):
        (videos / f"{number}.mp4").write_bytes(film(3, seed=number))
    config = EmbedConfig(run=run, videos=str(videos), out=str(out), window_seconds=None)
    index(config)
    query = SearchConfig(index=str(out), text="a red ring rises")
    now = search(query)
    for path in parts_in(str(out)):
        old = storage.read_table(path).drop_columns(["version", "start_seconds", "end_seconds", "strip"])
        tensors = safetensors.torch.load_file(path.replace(".parquet", ".safetensors"))
        for name in ("vectors", "tokens"):
            numbers = pa.array(list(tensors[name].flatten(1).numpy()), pa.list_(pa.float32()))
            old = old.append_column(name, numbers)
        remove_part(path)
        storage.write_table(path, old)
    facts = run_files.read_json(f"{out}/index.json")
    run_files.write_json(f"{out}/index.json", {name: facts[name] for name in ("model", "videos", "run")})
    assert [(one.uri, one.cross, one.span) for one in search(query)] == [(one.uri, one.cross, "") for one in now]
    with pytest.raises(ValueError, match="another format: None, not 3; take another --out"):
        claim(config, config.videos, config.out)
