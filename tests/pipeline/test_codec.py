from __future__ import annotations

import fractions
import io
import pickle
import sys
import types
import wave

import av
import numpy as np
import pytest
from PIL import Image

from jobs.benchmarks.corruption import unknown_codec, without_frames
from pipeline.decode import decoders
from pipeline.decode.codec import (
    DecodeError,
    decode_clip,
    decode_frames,
    decode_image,
    encode_video,
    fit_long_side,
    open_video,
)
from pipeline.decode.config import Sampling
from pipeline.decode.decoders import loadable
from pipeline.decode.sampling import Policy, clip_indices
from pipeline.records import Kind, Reason

NUM_FRAMES = 40


def known_decoders() -> list:
    """Every decoder; those that do not load here are skipped with the reason."""
    found = []
    for name in decoders.CHOICES:
        try:
            decoders.load(name)
            found.append(pytest.param(name))
        except ValueError as error:
            found.append(pytest.param(name, marks=pytest.mark.skip(reason=str(error))))
    return found


DECODERS = known_decoders()


def numbered(num_frames: int = NUM_FRAMES, width: int = 64, height: int = 48) -> np.ndarray:
    """Frames that say their own index in grey, and where left and top are in red and green."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width)[None, None, :]
    frames[..., 1] = np.linspace(0, 255, height)[None, :, None]
    frames[..., 2] = (np.arange(num_frames) * 6)[:, None, None]
    frames[:, height // 4 : -height // 4, width // 4 : -width // 4] = (np.arange(num_frames) * 6)[:, None, None, None]
    return frames


def read_index(frames: np.ndarray) -> list[int]:
    height, width = frames.shape[1:3]
    centre = frames[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    return np.rint(centre.astype(float).mean((1, 2, 3)) / 6).astype(int).tolist()


def write_video(frames: np.ndarray, format: str = "mp4", *, quarter_turns: int = 0, **options: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=format) as container:
        stream = container.add_stream("mpeg4" if format == "avi" else "libx264", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options, stream.bit_rate = "yuv420p", options, 4_000_000
        if quarter_turns:
            stream.set_display_rotation(90 * quarter_turns)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, fractions.Fraction(1, 16_000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def moov_first(data: bytes) -> bytes:
    """An MP4 whose index precedes its pixels, as web servers want it: cut anywhere, it still opens."""
    boxes, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        boxes.append(data[position : position + size])
        position += size
    moov = bytearray(next(box for box in boxes if box[4:8] == b"moov"))
    at = 0
    while (at := moov.find(b"stco", at + 1)) > 0:
        for entry in range(int.from_bytes(moov[at + 8 : at + 12], "big")):
            where = slice(at + 12 + 4 * entry, at + 16 + 4 * entry)
            moov[where] = (int.from_bytes(moov[where], "big") + len(moov)).to_bytes(4, "big")
    return boxes[0] + bytes(moov) + b"".join(box for box in boxes[1:] if box[4:8] != b"moov")


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_video(numbered(), fps=10, crf=10, gop=12)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("format", ["mp4", "matroska", "avi"])
def test_info_and_exactly_the_asked_frames(decoder, format):
    with open_video(write_video(numbered(), format, g="12"), decoder) as opened:
        info = opened.info
        assert (info.num_frames, info.width, info.height) == (NUM_FRAMES, 64, 48)
        assert (info.fps, info.duration_seconds) == pytest.approx((10, 4))
        for wanted in ([0, 1, 2], [39, 0, 17, 17, 5], [12, 24], [39], list(range(NUM_FRAMES))):
            assert read_index(opened.frames(wanted)) == wanted


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_agree(video, decoder):
    clips = [
        decode_clip(video, kind=Kind.VIDEO, num_frames=6, size_px=56, decoder=one).frames.astype(int)
        for one in ("pyav", decoder)
    ]
    assert np.abs(clips[0] - clips[1]).mean() < 3


KEY_FRAMES = Sampling(rule="key_frames")


@pytest.mark.parametrize("format", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("decoder", loadable())
def test_a_clip_of_key_frames_is_those_frames(decoder, format):
    data = write_video(numbered(), format, g="12", sc_threshold="0", crf="10")
    settings = {"kind": Kind.VIDEO, "size_px": 64, "decoder": decoder}
    keys = decode_frames(data, num_frames=4, sampling=KEY_FRAMES, **settings)
    assert read_index(keys) == [0, 12, 24, 36]
    with open_video(data, "pyav") as opened:
        np.testing.assert_array_equal(keys, opened.frames([0, 12, 24, 36], (64, 48)))
        known = opened.info
    window = {"start_seconds": 1.0, "end_seconds": 3.0, "known": known}
    assert read_index(decode_frames(data, num_frames=2, sampling=KEY_FRAMES, **window, **settings)) == [12, 24]


def test_a_clip_of_key_frames_decodes_no_other_frame(video):
    damaged = bytearray(video)
    with av.open(io.BytesIO(video)) as container:
        others = [packet for packet in container.demux(video=0) if packet.size and not packet.is_keyframe]
    for packet in others:
        assert packet.pos is not None
        damaged[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    settings = {"kind": Kind.VIDEO, "num_frames": 4, "size_px": 64}
    with pytest.raises(DecodeError):
        decode_frames(bytes(damaged), **settings)
    whole = decode_frames(video, sampling=KEY_FRAMES, **settings)
    np.testing.assert_array_equal(decode_frames(bytes(damaged), sampling=KEY_FRAMES, **settings), whole)


def test_a_clip_without_a_key_frame_has_none(video):
    with pytest.raises(DecodeError, match="no key frame lies in the clip") as caught:
        decode_frames(
            video,
            kind=Kind.VIDEO,
            num_frames=2,
            size_px=64,
            sampling=KEY_FRAMES,
            start_seconds=0.1,
            end_seconds=1.0,
        )
    assert caught.value.reason == Reason.NO_FRAMES


@pytest.mark.parametrize("decoder", DECODERS)
def test_dense_clips_and_clips_at_a_rate_show_the_frames_of_their_rule(video, decoder):
    settings = {"kind": Kind.VIDEO, "num_frames": 4, "size_px": 64, "decoder": decoder}
    dense = decode_frames(video, sampling=Sampling(rule="dense", stride=2), **settings)
    assert read_index(dense) == [16, 18, 20, 22]
    by_rate = decode_frames(video, sampling=Sampling(rule="fps", frames_per_second=2.0), end_seconds=2.0, **settings)
    assert read_index(by_rate) == [2, 7, 12, 17]


def test_a_decoder_that_does_not_load_says_what_it_needs(monkeypatch):
    def refusal(name: str, module: object) -> str:
        def imported(name: str) -> object:
            if isinstance(module, Exception):
                raise module
            return module

        with monkeypatch.context() as patched:
            patched.setattr(decoders.importlib, "import_module", imported)
            with pytest.raises(ValueError, match=f"the decoder {name} ") as caught:
                decoders._load.__wrapped__(name)
        return str(caught.value)

    missing = ModuleNotFoundError("no module")
    assert "needs a package: pip install 'torchcodec>=0.13'" in refusal("torchcodec", missing)
    assert "x86-64 Linux; elsewhere choose pyav" in refusal("decord", missing)
    broken = refusal("torchcodec", RuntimeError("Could not load libavutil.so\nmore"))
    assert "FFmpeg libraries of the system, 4 to 8 (apt-get install ffmpeg)" in broken
    assert broken.endswith("(Could not load libavutil.so)")


def test_a_gpu_decoder_needs_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(decoders=None, transforms=None))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torchcodec-cuda needs a GPU"):
        decoders._load.__wrapped__("torchcodec-cuda")
    del sys.modules["pipeline.decode.torchcodec_video"]


@pytest.mark.parametrize("width", [16, 24, 40, 48, 50, 64, 72, 80, 96, 128])
def test_every_width_decodes_with_decord_natively_and_on_request(width, video):
    native = encode_video(numbered(4, width=width, height=64), fps=10, crf=5)
    by_decord, by_pyav = (open_video(native, decoder) for decoder in ("decord", "pyav"))
    with by_decord, by_pyav:
        one, other = (opened.frames([0, 3]).astype(int) for opened in (by_decord, by_pyav))
    assert one.shape == other.shape == (2, 64, width, 3)
    assert np.abs(one - other).mean() < 6
    with open_video(video, "decord") as opened:
        assert opened.frames([3, 8], (width, 36)).shape == (2, 36, width, 3)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_video_is_shown_upright(decoder, quarter_turns):
    turned = write_video(numbered(3), quarter_turns=quarter_turns, crf="5")
    with open_video(turned, decoder) as opened:
        assert (opened.info.width, opened.info.height) == ((48, 64) if quarter_turns % 2 else (64, 48))
        shown = opened.frames([1])[0].astype(int)
    expected = np.rot90(numbered(3)[1], quarter_turns).astype(int)
    assert np.abs(shown - expected).mean() < 6


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_clip_keeps_the_aspect_ratio_and_says_what_is_padding(decoder, video):
    clip = decode_clip(video, kind=Kind.VIDEO, num_frames=8, size_px=48, decoder=decoder)
    assert clip.num_frames == 8
    assert clip.frames.shape == (8, 48, 48, 3)
    assert not clip.pad_mask[:, :36].any()
    assert clip.pad_mask[:, 36:].all()
    assert not clip.frames[clip.pad_mask].any()
    assert read_index(clip.frames[:, :36]) == [2, 7, 12, 17, 22, 27, 32, 37]


def test_a_clip_of_a_window_lies_inside_it(video):
    rng = np.random.default_rng(0)
    for _ in range(5):
        clip = decode_clip(
            video,
            kind=Kind.VIDEO,
            num_frames=4,
            size_px=64,
            policy=Policy.RANDOM,
            rng=rng,
            start_seconds=1.0,
            end_seconds=2.0,
        )
        assert all(10 <= index < 20 for index in read_index(clip.frames[:, :48]))
    with open_video(video) as opened:
        assert clip_indices(opened.timeline, num_frames=2, start_seconds=3.0) == [32, 37]
        assert clip_indices(opened.timeline, num_frames=2, end_seconds=2.0) == [4, 14]


def test_a_short_video_repeats_its_frames():
    clip = decode_clip(encode_video(numbered(2), fps=10, crf=5), kind=Kind.VIDEO, num_frames=4, size_px=64)
    assert read_index(clip.frames[:, :48]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((568, 320), (224, 126)), ((320, 568), (126, 224)), ((10, 10), (224, 224)), ((5000, 1), (224, 1))],
)
def test_the_long_side_is_exact(size, expected):
    assert fit_long_side(*size, 224) == expected


def _jpeg(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(numbered(1)[0]).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_an_image_is_a_clip_of_one_frame():
    clip = decode_clip(_jpeg(), kind=Kind.IMAGE, num_frames=8, size_px=32)
    assert clip.num_frames == 1
    assert clip.frames.shape == (1, 32, 32, 3)
    assert clip.pad_mask.sum() == 8 * 32
    assert np.array_equal(decode_image(_jpeg(6)), np.rot90(decode_image(_jpeg()), -1))


def _truncated(format: str) -> bytes:
    data = write_video(numbered(), format)
    return data[: len(data) * 3 // 4]


BAD_VIDEOS = {
    "nothing": (b"", Reason.EMPTY),
    "text": (b"this is no video\n" * 50, Reason.UNREADABLE),
    "noise": (np.random.default_rng(0).bytes(3000), Reason.UNREADABLE),
    "sound": (sound_only(), Reason.NO_VIDEO_STREAM),
    "wave": (None, Reason.NO_VIDEO_STREAM),
    "unknown codec": (unknown_codec(encode_video(numbered(), fps=10)), Reason.UNSUPPORTED_CODEC),
    "no frames": (without_frames(encode_video(numbered(), fps=10)), Reason.NO_FRAMES),
    "cut mp4": (_truncated("mp4"), Reason.TRUNCATED),
    "cut avi": (_truncated("avi"), Reason.TRUNCATED),
    "cut matroska": (_truncated("matroska"), Reason.TRUNCATED),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("was_known", [False, True])
@pytest.mark.parametrize("what", BAD_VIDEOS)
def test_a_bad_video_has_a_reason_at_first_sight_and_when_it_was_good_before(what, was_known, decoder, video):
    with open_video(video) as opened:
        known = opened.info if was_known else None
    data, reason = BAD_VIDEOS[what]
    if data is None:
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
            file.writeframes(bytes(1600))
        data = buffer.getvalue()
    with pytest.raises(DecodeError) as caught:
        decode_clip(data, kind=Kind.VIDEO, num_frames=4, size_px=48, decoder=decoder, known=known)
    assert caught.value.reason == reason


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_cut_video_that_still_opens_is_truncated(decoder, share, video):
    whole = moov_first(video)
    with open_video(whole, decoder) as opened:
        assert read_index(opened.frames([0, 39])) == [0, 39]
    with pytest.raises(DecodeError) as caught:
        decode_clip(whole[: int(len(whole) * share)], kind=Kind.VIDEO, num_frames=4, size_px=48, decoder=decoder)
    assert caught.value.reason == Reason.TRUNCATED


@pytest.mark.parametrize("decoder", DECODERS)
def test_damaged_pixels_are_refused_not_shown(decoder, video):
    start = video.index(b"mdat") + 4
    damaged = bytearray(video)
    damaged[start + 2000 : start + 6000] = bytes(4000)
    with pytest.raises(DecodeError) as caught:
        decode_clip(bytes(damaged), kind=Kind.VIDEO, num_frames=20, size_px=48, decoder=decoder)
    assert caught.value.reason == Reason.UNREADABLE


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", Reason.EMPTY), (b"no image", Reason.UNREADABLE), (_jpeg()[:900], Reason.TRUNCATED)],
)
def test_a_bad_image_has_a_reason(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode_clip(data, kind=Kind.IMAGE, num_frames=1, size_px=32)
    assert caught.value.reason == reason


def test_a_clip_after_the_end_is_out_of_range(video):
    with pytest.raises(DecodeError, match=r"starts at 9.0 s, the video ends at 4.000 s") as caught:
        decode_clip(video, kind=Kind.VIDEO, num_frames=4, size_px=48, start_seconds=9.0, end_seconds=10.0)
    assert caught.value.reason == Reason.OUT_OF_RANGE


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DecodeError(Reason.TRUNCATED, "cut")))
    assert (error.reason, error.detail, str(error)) == (Reason.TRUNCATED, "cut", "truncated: cut")


def test_an_unknown_decoder_is_refused(video):
    with pytest.raises(ValueError, match="no decoder 'opencv'; choose one of decord, pyav"):
        open_video(video, "opencv")


def test_odd_sizes_are_refused_by_the_encoder():
    with pytest.raises(ValueError, match="even height and width, got 48×63"):
        encode_video(numbered(2, width=63), fps=10)


@pytest.mark.parametrize("limit", ["0", "1"])
def test_where_decord_gives_up_pyav_decodes(monkeypatch, video, limit):
    monkeypatch.setenv(
        "DECORD_EOF_RETRY_MAX", limit
    )  # decord counts its own idle turns: a busy machine reaches any limit
    with open_video(video, "decord") as opened:
        assert read_index(opened.frames([0, 20, 39])) == [0, 20, 39]
