"""Clips of long videos from their own bytes: the pixels of the whole file, and nothing else is read."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from films import FILMS, NUM_FRAMES, WHOLE

from pipeline import storage
from pipeline.corpus import fetching
from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.decode import clip_media, distant
from pipeline.decode.codec import decode_frames, index_packets, open_video
from pipeline.decode.config import Limits, Sampling
from pipeline.decode.distant import DistantBytes
from pipeline.decode.groups import CutVideo
from pipeline.decode.isolation import isolated
from pipeline.decode.packets import CUT, PacketIndex, check_of, decode_with_retry, merge_ranges
from pipeline.decode.sampling import Policy
from pipeline.decode.video import PyavVideo
from pipeline.offline.stages import KNOWN, probe_batch
from pipeline.records import DecodeError, DistantFile, EncodedPackets, Kind, Media, Reason
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource, decode_block

LIMITS = Limits(seconds=20.0)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("films") / "film"
    return {name: film.made(path) for name, film in (FILMS | WHOLE).items()}


def index_of(data: bytes) -> PacketIndex:
    return PacketIndex.from_bytes(bytes(index_packets(data)))


def cut_of(index: PacketIndex, data: bytes, frames: list[int], **settings: Any) -> EncodedPackets:
    return index.cut(frames, lambda start, stop: data[start:stop], **settings)


def cut_video(packets: Media) -> CutVideo:
    assert isinstance(packets, EncodedPackets)
    return CutVideo(packets)


@pytest.mark.parametrize("name", FILMS)
def test_a_clip_by_its_packets_is_that_of_the_whole_file(name, films):
    data, rng = films[name], np.random.default_rng(0)
    index = index_of(data)
    with PyavVideo(data) as video:
        assert index.header["info"] == dataclasses.asdict(video.info)
        np.testing.assert_array_equal(index.timeline.times, video.timeline.times)
        assert (index.timeline.end, index.key_frames) == (video.timeline.end, video.key_frames)
        whole = video.frames(range(video.info.num_frames))
    for first in rng.integers(0, len(whole), 12):
        frames = sorted(rng.integers(first, min(first + 12, len(whole)), 4).tolist())
        cut = cut_of(index, data, frames)
        shown = decode_with_retry(cut, lambda packets, f=frames: cut_video(packets).frames(f))
        np.testing.assert_array_equal(shown, whole[frames])
    assert len(cut_of(index, data, [0])) < len(data) / 3
    for frame in range(len(whole)):
        shown = decode_with_retry(cut_of(index, data, [frame]), lambda packets, n=frame: cut_video(packets).frames([n]))
        np.testing.assert_array_equal(shown[0], whole[frame])


@pytest.mark.parametrize("name", FILMS)
def test_a_damaged_file_is_used_or_refused_as_when_it_is_read_whole(name, films):
    for seed in range(4):
        rng, damaged = np.random.default_rng(seed), bytearray(films[name])
        for position in rng.integers(0, len(damaged), 3).tolist():
            damaged[position] ^= 1 << int(rng.integers(8))
        data = bytes(damaged)
        try:
            if not len(raw := index_packets(data)):
                continue
        except DecodeError as error:
            with pytest.raises(DecodeError, match=str(error.reason)), PyavVideo(data) as video:
                video.frames([0])
            continue
        index = PacketIndex.from_bytes(bytes(raw))
        for frame in rng.integers(0, len(index.timeline.times), 3).tolist():
            cut = cut_of(index, data, [frame])
            by_packets = outcome(
                lambda c=cut, f=frame: decode_with_retry(c, lambda packets: cut_video(packets).frames([f]))
            )
            with open_video(data, "pyav") as video:
                assert by_packets == outcome(lambda v=video, f=frame: v.frames([f]))


def outcome(show: Callable[[], Any]) -> Any:
    """Return the pixels, or why there are none."""
    try:
        return show().tobytes()
    except DecodeError as error:
        return error.reason, error.detail


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_without_times_or_in_pieces_is_read_whole(name, films):
    assert not len(index_packets(films[name]))


@pytest.mark.parametrize("rule", ["segments", "dense", "fps", "key_frames"])
@pytest.mark.parametrize("clock", ["time", "index"])
def test_the_same_frames_are_chosen_by_each_rule(rule, clock, films, tmp_path):
    data = films["index at the end"]
    (tmp_path / "film.mp4").write_bytes(data)
    (row,) = probed(tmp_path, [(0.6, 2.4)])
    sampling = Sampling(rule=rule, clock=clock, stride=3)
    for seed in range(5):
        choice = {
            "num_frames": 5,
            "sampling": sampling,
            "policy": Policy.RANDOM,
            "start_seconds": 0.6,
            "end_seconds": 2.4,
        }
        media = clip_media.fetch_clip(row, "pyav", rng=np.random.default_rng(seed), **choice)
        assert isinstance(media, EncodedPackets)
        settings = choice | {"kind": Kind.VIDEO, "size_px": 64}
        by_packets = decode_with_retry(
            media, lambda one, s=settings: isolated(decode_frames, one, limits=LIMITS, decoder="pyav", **s)
        )
        whole = decode_frames(data, rng=np.random.default_rng(seed), decoder="pyav", **settings)
        np.testing.assert_array_equal(by_packets, whole)


def test_an_index_survives_its_bytes_and_damage_is_told(films):
    data = films["many frames that depend on others"]
    index = index_of(data)
    again = PacketIndex.from_bytes(index.to_bytes())
    assert (again.header, again.packets.tobytes()) == (index.header, index.packets.tobytes())
    assert len(index.to_bytes()) < 1200 + 12 * len(index.packets)
    for damaged in (b"", b"x", index.to_bytes()[:-9], PacketIndex.to_bytes(index)[10:]):
        with pytest.raises(DecodeError, match="index of packets is damaged"):
            PacketIndex.from_bytes(damaged)
    with pytest.raises(DecodeError, match="index of packets is damaged"):
        PacketIndex({**index.header, "num_bytes": 1000}, index.packets)


def test_what_decodes_once_decodes_always(films):
    """FFmpeg reads zeros behind packets and parameters; without them, a clip in three did not decode, by chance."""
    index = index_of(films["MPEG-4 with B-frames"])
    shown = []
    for _ in range(20):
        cut = cut_of(index, films["MPEG-4 with B-frames"], [40, 41, 50])
        shown.append(decode_with_retry(cut, lambda packets: cut_video(packets).frames([40, 41, 50])).tobytes())
    assert len(set(shown)) == 1


def test_only_the_packets_needed_are_read_and_near_ranges_are_one(films):
    data = films["index at the end"]
    index, read = index_of(data), []
    group = [place for place in index.keys if place <= 40][-1]
    cut = index.cut([40], lambda start, stop: read.append((start, stop)) or data[start:stop])
    ((start, stop),) = read
    assert start == index.packets["position"][group]
    assert stop - start < 1.5 * len(cut)
    assert cut.packets.dtype == CUT
    assert set(cut.packets["number"]) == set(range(group, group + len(cut.packets)))
    assert merge_ranges([(0, 10), (10, 20), (2**20, 2**20 + 5), (30, 40)]) == [(0, 40), (2**20, 2**20 + 5)]
    assert merge_ranges([]) == []


def test_other_bytes_than_those_indexed_are_refused(films):
    data = films["index at the end"]
    index = index_of(data)
    position = int(index.packets["position"][0]) + 40
    changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    with pytest.raises(DecodeError, match=r"wrong_checksum: bytes .* are not those that prepare has seen"):
        cut_of(index, changed, [0])
    assert check_of(b"a") != check_of(b"b")


def test_a_frame_that_needs_the_group_before_gets_it(films):
    """As of a stream that is cut behind an open group: the first try has too few packets, the next ones have more."""
    index, tries = index_of(films["index at the end"]), []

    def decode(media: Any) -> int:
        tries.append(len(media.packets))
        if len(tries) < 3:
            raise DecodeError(Reason.UNREADABLE, "frame 70 does not decode")
        return media.packets["number"][0]

    assert decode_with_retry(cut_of(index, films["index at the end"], [70]), decode) == 0
    assert tries == sorted(set(tries))
    with pytest.raises(DecodeError, match="does not decode"):
        decode_with_retry(cut_of(index, films["index at the end"], [70]), lambda _: decode_nothing())


def decode_nothing() -> None:
    raise DecodeError(Reason.UNREADABLE, "frame 70 does not decode")


@pytest.mark.parametrize("name", ["index at the end", "fragments", "Matroska", "VP8 with frames that are not shown"])
def test_a_file_too_large_for_memory_is_indexed_in_parts(name, films, monkeypatch):
    monkeypatch.setattr(distant, "BLOCK_BYTES", 4096)
    data, asked = films[name], []
    file = DistantBytes(len(data), lambda start, stop: asked.append((start, stop)) or data[start:stop])
    assert bytes(index_packets(file)) == bytes(index_packets(data))  # pyright: ignore[reportArgumentType]
    assert max(stop - start for start, stop in asked) == 4096
    assert len(file._blocks) <= distant.NUM_CACHED


def test_a_distant_file_is_like_bytes(monkeypatch):
    monkeypatch.setattr(distant, "BLOCK_BYTES", 7)
    data = np.random.default_rng(0).bytes(50)
    file = DistantBytes(len(data), lambda start, stop: data[start:stop])
    for start, stop in itertools.product((0, 3, 7, 49, 50, 60, -5), repeat=2):
        assert file[start:stop] == data[start:stop]
        assert file.find(data[20:30], start, stop) == data.find(data[20:30], start, stop)
    assert (file[0], file.startswith(data[7:16], 7), file.startswith(data, 1)) == (data[0], True, False)
    file.seek(-10, io.SEEK_END)
    assert (file.read(4), file.tell(), file.read(), file.read(3)) == (data[40:44], 44, data[44:], b"")


def test_a_decode_process_gets_the_parts_that_it_asks_for_and_nothing_else(films):
    data = films["index at the end"]
    file = DistantFile(len(data), lambda start, stop: data[start:stop])
    assert isolated(index_packets, file, limits=LIMITS).tobytes() == bytes(index_packets(data))

    def gone(start: int, stop: int) -> bytes:
        raise DecodeError(Reason.UNAVAILABLE, "the store failed")

    with pytest.raises(DecodeError, match="unavailable: the store failed"):
        isolated(index_packets, DistantFile(len(data), gone), limits=LIMITS)
    assert isolated(index_packets, data, limits=LIMITS).tobytes() == bytes(index_packets(data))
    with pytest.raises(ValueError, match="distant file is indexed"):
        open_video(file)


def probed(folder: Path, windows: Sequence[tuple[float | None, float | None]], name: str = "film.mp4") -> list[dict]:
    """Return the manifest rows of clips of a file, as `prepare` finds them."""
    known = [
        {"clip_id": number, "uri": str(folder / name), "captions": ["a caption"], "kind": "video", "split": "train"}
        | {"start_seconds": start, "end_seconds": end}
        for number, (start, end) in enumerate(windows)
    ]
    return probe_batch(pa.Table.from_pylist(known, schema=KNOWN), "pyav", LIMITS, str(folder / "packets")).to_pylist()


WINDOWS = [(0.2 * number, 0.2 * number + 0.8) for number in range(10)]


def written(folder: Path, data: bytes, windows: Any = WINDOWS) -> tuple[list[dict], ClipSource]:
    """Return the rows of a corpus of one file, and how it is trained on."""
    (folder / "film.mp4").write_bytes(data)
    rows = probed(folder, windows)
    usable = [row for row in rows if row["reason"] is None]
    write_manifest(make_manifest("films", str(folder), usable), str(folder / "manifest.parquet"))
    plan = Plan(seed=0, num_videos=len(usable), num_images=0, global_batch=5)
    manifest = str(folder / "manifest.parquet")
    common = {"manifest_path": manifest, "split": "train", "num_frames": 4, "frame_size_px": 64, "seed": 0, "batch": 5}
    return rows, ClipSource(plan=plan, decoder="pyav", **common)


def epoch(source: ClipSource) -> list[dict]:
    blocks = [pa.table({"id": [number]}) for number in range(source.num_groups(2, 1))]
    settings = {"source": source, "start_step": 0, "stop_step": 2, "num_ranks": 1}
    return pa.concat_tables(decode_block(block, **settings) for block in blocks).to_pylist()


def test_an_epoch_reads_its_own_bytes_and_shows_the_same(films, tmp_path, monkeypatch):
    rows, source = written(tmp_path, films["index at the end"])
    (packets,) = {row["packets"] for row in rows}
    assert Path(packets).parent == tmp_path / "packets"
    read: list[tuple[str, int | None]] = []
    read_bytes = storage.read_bytes

    def counted(path: str, start: int | None = None, stop: int | None = None) -> bytes:
        read.append((path, start))
        return read_bytes(path, start, stop)

    monkeypatch.setattr(storage, "read_bytes", counted)
    clip_media._index_at.cache_clear()
    by_packets = epoch(source)
    assert [path for path, _ in read].count(packets) == 1
    assert not [path for path, start in read if path.endswith(".mp4") and start is None]
    read.clear()
    whole = epoch(dataclasses.replace(source, decoder="pipeline.decode.video:PyavVideo"))
    assert [path for path, start in read if start is None].count(str(tmp_path / "film.mp4")) == len(WINDOWS)
    assert by_packets == whole
    assert all(row["weight"] for row in by_packets)


def test_what_happened_to_the_file_or_its_index_is_a_reason(films, tmp_path):
    data = films["index at the end"]
    (rows, source), film = written(tmp_path, data), tmp_path / "film.mp4"
    film.write_bytes(data[:-1] + b"x")
    assert {row["reason"] for row in epoch(source)} == {""}
    film.write_bytes(data[: len(data) // 8])
    assert Reason.WRONG_CHECKSUM in {row["reason"] for row in epoch(source)}
    film.write_bytes(films["index in front"])
    assert {row["reason"] for row in epoch(source)} == {Reason.WRONG_CHECKSUM}
    film.write_bytes(data)
    Path(rows[0]["packets"]).unlink()
    clip_media._index_at.cache_clear()
    assert {row["reason"] for row in epoch(source)} == {Reason.MISSING}


def test_clips_that_are_no_part_of_a_file_and_other_decoders_read_it_whole(films, tmp_path):
    rows, _ = written(
        tmp_path, films["index at the end"], [(None, None), (0.0, 1.0), (1.0, None), (9.0, 12.0), (-1.0, 1.0)]
    )
    assert [row["packets"] is None for row in rows] == [True, False, False, True, True]
    assert [row["reason"] for row in rows] == [None, None, None, Reason.OUT_OF_RANGE, Reason.OUT_OF_RANGE]
    (tmp_path / "film.mpg").write_bytes(films["MPEG-PS"])
    (row,) = probed(tmp_path, [(0.5, 1.5)], "film.mpg")
    assert (row["reason"], row["packets"], row["num_frames"]) == (None, None, NUM_FRAMES)


def test_a_large_file_is_prepared_without_being_read_whole(films, tmp_path, monkeypatch):
    data = films["Matroska"]
    (tmp_path / "film.mkv").write_bytes(data)
    wanted = probed(tmp_path, [(0.5, 1.5)], "film.mkv")
    monkeypatch.setattr(fetching, "IN_MEMORY_BYTES", 1000)
    assert probed(tmp_path, [(0.5, 1.5)], "film.mkv") == wanted
    (row,) = probed(tmp_path, [(None, None)], "film.mkv")
    assert row["packets"] == wanted[0]["packets"]
    (tmp_path / "film.mpg").write_bytes(films["MPEG-PS"])
    (row,) = probed(tmp_path, [(0.5, 1.5)], "film.mpg")
    assert (row["reason"], row["packets"]) == (None, None)


@pytest.mark.slow
def test_a_file_over_4_gib_is_no_special_case(films, tmp_path):
    """Of which 4.5 GiB are a hole, without pixels, between the index and the first fragment."""
    data, hole = films["fragments"], 9 * 2**29
    start = data.index(b"moof") - 4
    with open(tmp_path / "film.mp4", "wb") as file:
        file.write(data[:start] + (1).to_bytes(4, "big") + b"free" + hole.to_bytes(8, "big"))
        file.seek(start + hole)
        file.write(data[start:])
    (row,) = probed(tmp_path, [(0.5, 1.5)])
    assert (row["reason"], row["bytes"]) == (None, len(data) + hole)
    (tmp_path / "small.mp4").write_bytes(data)
    (small,) = probed(tmp_path, [(0.5, 1.5)], "small.mp4")
    choice = {"num_frames": 4, "sampling": Sampling(), "start_seconds": 0.5, "end_seconds": 1.5}
    media, same = (clip_media.fetch_clip(one, "pyav", **choice) for one in (row, small))
    assert isinstance(media, EncodedPackets)
    assert isinstance(same, EncodedPackets)
    assert (media.data, media.frame_numbers, media.pts) == (same.data, same.frame_numbers, same.pts)


def test_a_damaged_file_is_looked_at_once(films, tmp_path, monkeypatch):
    calls = []

    def counted(function: Any, data: Any, **settings: Any) -> Any:
        calls.append(function.__name__)
        return isolated(function, data, **settings)

    monkeypatch.setattr("pipeline.offline.probing.isolated", counted)
    (tmp_path / "film.mp4").write_bytes(films["index at the end"][:3000])
    rows = probed(tmp_path, WINDOWS)
    assert {row["reason"] for row in rows} == {Reason.TRUNCATED}
    assert calls == ["index_packets"]
