"""Frames at their time and in their colours. A dozen odd files whose right values are known by how they are made, with
PyAV alone; `make nightly` runs the whole suite, which measures by the ffmpeg command."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image

from jobs.benchmarks.conformance import compared, conformance, faults, psnr
from jobs.benchmarks.support.drawn_frames import colour_error, drawn_frames, read_number
from jobs.benchmarks.support.ffmpeg_truth import Truth
from jobs.benchmarks.support.media_files import MediaFile, Rule
from jobs.benchmarks.support.media_table import FILES
from pipeline.decode import decoders
from pipeline.decode.codec import open_video
from pipeline.decode.images import resize
from pipeline.records import DecodeError

NUM_FRAMES, WIDTH, HEIGHT = 30, 256, 144
EVEN = tuple(0.04 * number for number in range(NUM_FRAMES))
PAUSES = tuple(0.04 * (number + number // 10 * 25) for number in range(NUM_FRAMES))
X264 = {"preset": "veryfast", "crf": "16", "g": "10"}
QUANTISER = {"qmin": "2", "qmax": "2"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """How PyAV makes a file, and what is right of it."""

    format: str
    codec: str = "libx264"
    options: dict[str, str] = dataclasses.field(default_factory=lambda: X264)
    pixels: str = "yuv420p"
    times: Sequence[float] = EVEN
    shown_from: float = 0.0
    """Where the first frame is on a player's clock."""
    sound: bool = False
    """Whether there is sound from 0 s on."""
    container: dict[str, str] = dataclasses.field(default_factory=dict)
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)
    turn: int = 0
    """Degrees counter-clockwise from the stored picture to the shown one."""
    shape: tuple[int, int] = (WIDTH, HEIGHT)
    max_colour_error: float = 6.0


CLIPS = {
    "B-frames in AVI": Clip(format="avi", codec="mpeg4", options={"bf": "2", "g": "10"} | QUANTISER, shown_from=0.04),
    "H.264 with B-frames in MPEG-TS": Clip(format="mpegts"),
    "MPEG-PS": Clip(format="mpeg", codec="mpeg2video", options={"bf": "2", "g": "10"} | QUANTISER),
    "WMV": Clip(format="asf", codec="wmv2", options={"g": "10"} | QUANTISER),
    "open groups of HEVC": Clip(
        format="matroska", codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=0:keyint=10"}
    ),
    "variable rate in MP4": Clip(format="mp4", times=PAUSES),
    "variable rate in WebM": Clip(
        format="webm", codec="libvpx-vp9", options={"b": "4M", "cpu-used": "8"}, times=PAUSES, max_colour_error=8
    ),
    "video after sound": Clip(format="matroska", times=[1 + time for time in EVEN], shown_from=1.0, sound=True),
    "a clock that starts late": Clip(format="matroska", times=[10 + time for time in EVEN]),
    "fragments": Clip(format="mp4", container={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "H.264 with B-frames in MXF": Clip(format="mxf"),
    "one frame in FLV": Clip(format="flv", times=EVEN[:1]),
    "two frames in MPEG-TS": Clip(format="mpegts", times=EVEN[:2]),
    "turned in Matroska": Clip(format="matroska", turn=90, shape=(HEIGHT, WIDTH)),
    "turned in MP4": Clip(format="mp4", turn=-90, shape=(HEIGHT, WIDTH)),
    "wide pixels": Clip(format="mp4", stream={"sample_aspect_ratio": Fraction(2, 1)}, shape=(2 * WIDTH, HEIGHT)),
    "ten bits": Clip(format="mp4", pixels="yuv420p10le"),
    "full range": Clip(format="mp4", pixels="yuvj420p"),
    "GIF": Clip(format="gif", codec="gif", options={}, pixels="rgb8", max_colour_error=45),
}


def made(clip: Clip) -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=clip.format, options=clip.container) as container:
        stream = container.add_stream(clip.codec, rate=25, options=clip.options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, clip.pixels
        for name, value in clip.stream.items():
            setattr(stream, name, value)
        if clip.turn:
            stream.set_display_rotation(clip.turn)
        sound = container.add_stream("flac", rate=8000) if clip.sound else None
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.int16), "s16", "mono")
            silence.rate, silence.pts = 8000, 0
            container.mux([*sound.encode(silence), *sound.encode()])
        for pixels, seconds in zip(drawn_frames(len(clip.times), WIDTH, HEIGHT), clip.times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round(seconds * 25), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: made(clip) for name, clip in CLIPS.items()}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("decoder", [name for name in decoders.loadable() if name != "torchcodec-cuda"])
def test_a_decoder_shows_each_frame_at_its_time(decoder: str, name: str, files: dict[str, bytes]) -> None:
    clip = CLIPS[name]
    with open_video(files[name], decoder) as video:
        frames = video.frames(range(len(clip.times)))
        times, drawn = video.timeline.times, np.random.default_rng(0).permutation(len(clip.times))[:8].tolist()
        again = video.frames(drawn)
    numbers = list(range(len(clip.times)))
    turned_back = np.rot90(frames, -clip.turn // 90, axes=(1, 2))
    assert [read_number(frame) for frame in turned_back] == numbers
    np.testing.assert_allclose(times, np.array(clip.times) - clip.times[0] + clip.shown_from, atol=0.0015)
    np.testing.assert_array_equal(again, frames[drawn])
    assert frames.shape[1:3] == clip.shape[::-1]
    assert max(map(colour_error, turned_back)) <= clip.max_colour_error


def test_a_gif_without_delays_runs_as_in_players() -> None:
    """They show a frame of less than 20 ms for 100."""
    delays_ms = [10, 500, 20, 0, 40, 10, 100]
    first, *others = (Image.fromarray(frame).quantize(64) for frame in drawn_frames(len(delays_ms), 64, 48))
    first.save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=others, duration=delays_ms)
    shown_ms = [delay if delay >= 20 else 100 for delay in delays_ms]
    with open_video(buffer.getvalue(), "pyav") as video:
        np.testing.assert_allclose(video.timeline.times, np.cumsum([0, *shown_ms[:-1]]) / 1000)


def test_a_stream_whose_clock_wraps_begins_where_its_sound_does() -> None:
    """MPEG-TS counts 33 bits of 1/90000 s; what comes before 0 then is no delay of an encoder."""
    wraps_seconds, buffer = 2**33 / 90_000, io.BytesIO()
    with av.open(buffer, "w", format="mpegts", options={"muxdelay": "0"}) as container:
        stream, sound = container.add_stream("libx264", rate=25, options=X264), container.add_stream("mp2", rate=48_000)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 96_000), np.int16), "s16", "mono")
        silence.rate, silence.pts = 48_000, round((wraps_seconds - 0.4) * 48_000)
        container.mux(sound.encode(silence))
        for number, pixels in enumerate(drawn_frames(NUM_FRAMES, WIDTH, HEIGHT)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round((wraps_seconds + 0.2) * 25) + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux([*stream.encode(), *sound.encode()])
    with open_video(buffer.getvalue(), "pyav") as video:
        np.testing.assert_allclose(video.timeline.times, np.array(EVEN) + 0.6, atol=0.03)


def test_frames_that_are_turned_differently_are_refused(files: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with av.open(io.BytesIO(files["full range"])) as source, av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        insert = BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:rotate=90", source.streams.video[0], stream
        )
        for packet in source.demux(source.streams.video[0]):
            container.mux(insert.filter(packet if packet.size else None))
    with open_video(buffer.getvalue(), "pyav") as video, pytest.raises(DecodeError, match="only some frames name how"):
        video.frames(range(NUM_FRAMES))


@pytest.mark.parametrize("pixels", ["monob", "gray"])
def test_dots_and_greys_go_through_the_one_filter(pixels: str) -> None:
    buffer, dots = io.BytesIO(), np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH, 1), np.uint8) * 255
    with av.open(buffer, "w", format="nut") as container:
        stream = container.add_stream("ffv1" if pixels == "gray" else "rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        drawn = dots.repeat(3, 2) if pixels == "monob" else drawn_frames(1, WIDTH, HEIGHT)[0]
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(drawn, "rgb24")), *stream.encode()])
    with open_video(buffer.getvalue(), "pyav") as video:
        ((whole,), (small,)) = video.frames([0]), video.frames([0], (112, 63))
    assert psnr(small, resize(Image.fromarray(whole), (112, 63))) >= 40


@pytest.fixture(scope="module")
def truth() -> Truth:
    """What ffmpeg would say of a plain file."""
    frames = np.stack([resize(Image.fromarray(frame), (224, 126)) for frame in drawn_frames(NUM_FRAMES, WIDTH, HEIGHT)])
    return Truth(
        frames=frames, times=np.array(EVEN), numbers=list(range(NUM_FRAMES)), worst_colour=0, codec="h264", fps=25
    )


FILE = MediaFile(name="plain.mp4")


def found(frames: np.ndarray, times: np.ndarray, truth: Truth) -> str:
    return ", ".join(faults(*compared(frames, times, truth, FILE), times, truth, FILE))


def test_the_suite_finds_what_is_wrong_with_frames(truth: Truth) -> None:
    frames, times = truth.frames, truth.times
    assert found(frames, times, truth) == ""
    assert found(frames, times + 0.015, truth) == ""
    assert "0.040 s away" in found(frames[[0, *range(NUM_FRAMES - 1)]], times, truth)
    assert "1.000 s away" in found(frames, times + 1, truth)
    assert "the first at 0.800 s" in found(frames[:20], times[:20], truth)
    darker = (frames * 0.95).astype(np.uint8)
    assert "dB" in found(darker, times, truth)
    swapped = frames[..., ::-1]
    assert "dB" in found(swapped, times, truth)


@pytest.mark.parametrize("turns", [(0, True), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True)])
def test_a_frame_that_is_not_upright_is_another_one(turns: tuple[int, bool]) -> None:
    frame = drawn_frames(12, 144, 144)[11]
    turned = np.rot90(frame[:, ::-1] if turns[1] else frame, turns[0])
    assert read_number(frame) == 11
    assert read_number(turned) != 11 or colour_error(turned) > 50


def test_the_table_fixes_what_is_asked_of_each_file() -> None:
    names = [file.name for file in FILES]
    assert len(set(names)) == len(names) >= 250
    assert {rule: sum(file.rule == rule for file in FILES) >= 10 for rule in Rule} == dict.fromkeys(Rule, True)
    assert {file.min_db for file in FILES} == {30.0, 40.0}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg command makes the files and says what is right")
def test_each_decoder_shows_what_ffmpeg_shows() -> None:
    result = conformance()
    assert result["doubts"] == {}
    assert result["unread"] == []
    assert not any(result["failures"].values()), result["failures"]
    assert result["num_accepted"] > 400
