"""The bytes of a file decide what it is; nothing that opens another resource is taken for a video or a picture."""

from __future__ import annotations

import ctypes
import io
import random
import re
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest

from pipeline.decode import formats
from pipeline.decode.codec import decode_frames, encode_video
from pipeline.decode.formats import container_of, kind_by_bytes, picture_format, refuse_damaged
from pipeline.decode.video import RESTRICTED_INPUT
from pipeline.records import DecodeError, Kind, Reason

OPENERS = {"concat", "dash", "hls", "image2", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "vobsub"}
"""FFmpeg's demuxers that open what a file or an address names."""
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n"
MPD = b'<?xml version="1.0"?>\n<MPD profiles="urn:mpeg:dash:profile:isoff-live:2011"></MPD>'
NAMED = {
    "HLS": (HLS, "an HLS playlist"),
    "blank lines in front": (b"\xef\xbb\xbf\r\n" + HLS, "an HLS playlist"),
    "HLS before MPEG-TS": (HLS.ljust(188, b"\n") + (b"G" + bytes(187)) * 20, "an HLS playlist"),
    "ffconcat": (b"ffconcat version 1.0\nfile sub/secret.mp4\n", "an ffconcat playlist"),
    "DASH": (MPD, "a DASH manifest"),
    "SDP": (SDP, "an SDP session description"),
    "ASF redirector": (b"[Reference]\r\nRef1=http://127.0.0.1/a.asf\r\n", "an ASF redirector"),
    "ASX": (b"<ASX version='3'><entry><ref href='x'/></entry></ASX>", "an ASF redirector"),
    "RTSP": (b"rtsp://127.0.0.1/a", "an RTSP redirector"),
    "IMF": (b"<?xml version='1.0'?><CompositionPlaylist xmlns='x'>", "an IMF playlist"),
    "VobSub": (b"# VobSub index file, v7\n", "a VobSub index"),
    "Magic Lantern": (b"MLVI\x34\0\0\0v2.0\0" + bytes(99), "a Magic Lantern recording"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
    "HTML": (b"<!DOCTYPE html><html><body>403</body></html>", "an HTML page"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "JSON": (b'{"error": "not found"}', "a JSON text"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "text": ("où est la vidéo ?\n".encode() * 9, "a text"),
    "ZIP": (b"PK\x03\x04" + bytes(50), "a ZIP archive"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG picture"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG picture"),
    "HEIF": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIF picture"),
}


def made(container: str, codec: str = "mpeg4", **options: str) -> bytes:
    """A video of 12 frames, 64 × 48."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as output:
        stream: Any = output.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec == "gif" else "yuv420p"
        for level in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * level, np.uint8), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        output.mux(stream.encode())
    return buffer.getvalue()


CONTAINERS = {
    "mp4": ("mov", made("mp4")),
    "fragments": ("mov", made("mp4", movflags="frag_keyframe+empty_moov")),
    "mov without ftyp": ("mov", made("mov").replace(b"ftyp", b"free", 1)),
    "matroska": ("matroska", made("matroska")),
    "webm": ("matroska", made("webm", "libvpx")),
    "avi": ("avi", made("avi")),
    "asf": ("asf", made("asf")),
    "flv": ("flv", made("flv", "flv")),
    "mpegts": ("mpegts", made("mpegts", "mpeg2video")),
    "m2ts": ("mpegts", made("mpegts", "mpeg2video", mpegts_m2ts_mode="1")),
    "mpegts from the middle of a packet": ("mpegts", made("mpegts", "mpeg2video")[100:]),
    "mpegts with a wrong byte": ("mpegts", (ts := made("mpegts", "mpeg2video"))[:188] + b"x" + ts[189:]),
    "mpeg": ("mpeg", made("mpeg", "mpeg2video")),
    "vob": ("mpeg", vob := made("vob", "mpeg2video")),
    "vob from the middle of a pack": ("mpeg", vob[vob.index(b"\0\0\1\xe0") :]),
    "mpeg video": ("mpegvideo", made("mpeg2video", "mpeg2video")),
    "m4v": ("m4v", made("m4v")),
    "h264": ("h264", made("h264", "libx264")),
    "gif": ("gif", made("gif", "gif")),
    "nut": ("nut", made("nut")),
    "ivf": ("ivf", made("ivf", "libvpx")),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_video_is_opened_as_what_its_first_bytes_say(name) -> None:
    demuxer, data = CONTAINERS[name]
    assert container_of(data).demuxer == demuxer
    assert kind_by_bytes(data) == Kind.VIDEO
    refuse_damaged(data)
    with av.open(io.BytesIO(data), mode="r", format=demuxer, container_options=RESTRICTED_INPUT) as container:
        assert len(list(container.decode(video=0))) >= 11


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_video_is_refused_by_its_name(name) -> None:
    data, words = NAMED[name]
    details = []
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            decode_frames(data, kind=Kind.VIDEO, num_frames=2, size_px=32)
        assert caught.value.reason == Reason.UNREADABLE
        details.append(caught.value.detail)
    assert details[0].startswith(f"the file is {words}")
    assert details[0] == details[1]
    if name not in ("JPEG", "PNG"):
        assert kind_by_bytes(data) is None
        with pytest.raises(DecodeError, match=re.escape(words)):
            picture_format(data)


FILMS = {
    "YUV4MPEG2": made("yuv4mpegpipe", "wrapped_avframe"),
    "WTV": made("wtv", "mpeg2video"),
    "Flash": made("swf", "flv"),
    "GXF": b"\0\0\0\0\x01\xbc" + bytes(99),
}


@pytest.mark.parametrize("name", FILMS)
def test_a_film_that_is_not_read_says_what_to_make_of_it(name) -> None:
    with pytest.raises(DecodeError, match=f"a {name} film, which is not read here: convert it to MP4 or Matroska"):
        decode_frames(FILMS[name], kind=Kind.VIDEO, num_frames=2, size_px=32)


@pytest.mark.parametrize("line", [b"\nc=IN IP4 127.0.0.1\n", b"\n\rc=IN IP4 127.0.0.1\n"])
def test_a_playlist_behind_the_first_bytes_of_a_video_is_refused(line) -> None:
    for data in (b"FLV\x01" + b"\x01" * 9 + line, b"G" + b"\x01" * 99 + line + CONTAINERS["mpegts"][1][132:]):
        with pytest.raises(DecodeError, match="SDP session description"):
            container_of(data)
    with pytest.raises(DecodeError, match="a playlist that begins like GIF"):
        container_of(b"GIF89a" + MPD)
    mp4 = encode_video(np.zeros((2, 16, 16, 3), np.uint8), fps=2)
    assert container_of(mp4 + SDP) == formats.MP4  # a comment behind zero bytes convinces no probe


def test_no_other_demuxer_of_the_library_opens_whatever_it_is_named() -> None:
    allowed = set(formats.FORMAT_WHITELIST.split(",")) | {"mp4", "3gp", "3g2", "webm"}  # other names of these
    names = [name for name in av.formats_available if _is_input(name)]
    assert len(names) > 200
    assert not allowed & OPENERS
    assert set(names) & OPENERS  # this library has some
    data = CONTAINERS["mp4"][1]
    for name in names:
        if not set(av.ContainerFormat(name, "r").name.split(",")) & allowed:
            with pytest.raises(av.error.ArgumentError):  # not on the whitelist
                av.open(io.BytesIO(data), format=name, container_options=RESTRICTED_INPUT).close()


def _is_input(name: str) -> bool:
    try:
        return av.ContainerFormat(name, "r").is_input
    except ValueError:
        return False


def test_decords_ffmpeg_takes_nothing_that_passes_for_a_playlist() -> None:
    """The probes of FFmpeg 4.1 themselves are asked of 4,000 videos with playlists written into them."""
    decord = pytest.importorskip("decord", reason="decord is not installed, whose FFmpeg is asked")
    libraries = sorted(Path(decord.__file__).parents[1].glob("decord.libs/libavformat-*.so*"))
    if not libraries:
        pytest.skip("this decord brings no FFmpeg of its own")
    library, rng, refused = ctypes.CDLL(str(libraries[0])), random.Random(0), 0
    texts = [data for data, _ in NAMED.values() if data.isascii()][:12]
    texts += [b"\nc=IN IP4 1.1.1.1\n", b"ID3\3\0\0\0\0\0\0" + HLS]
    videos = [data for _, data in CONTAINERS.values()]
    for _ in range(4000):
        data = bytearray(rng.choice(videos)[: rng.choice([64, 300, 4000])])
        place, text = rng.choice([0, 4, 5, 12, 16, 32, 188, rng.randrange(len(data))]), rng.choice(texts)
        data[place : place + len(text) * rng.randrange(2)] = text
        for _ in range(rng.choice([0, 0, 1, 4])):
            data[rng.randrange(min(len(data), 40))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data.replace(b"\0", b"\1")
        if _probed(library, bytes(data)) & (OPENERS | {"applehttp"}):
            refused += 1
            with pytest.raises(DecodeError):
                container_of(bytes(data))
    assert refused > 50


class _Probed(ctypes.Structure):
    _fields_ = (
        ("filename", ctypes.c_char_p),
        ("buf", ctypes.c_void_p),
        ("buf_size", ctypes.c_int),
        ("mime_type", ctypes.c_char_p),
    )


def _probed(library: ctypes.CDLL, data: bytes) -> set[str]:
    """Names of the demuxer that FFmpeg would choose, as it does it: from more and more bytes."""
    library.av_probe_input_format3.restype = ctypes.POINTER(ctypes.c_char_p)
    size = 2048
    while True:
        buffer, score = ctypes.create_string_buffer(data[:size], min(size, len(data)) + 32), ctypes.c_int()
        probed = _Probed(b"", ctypes.addressof(buffer), min(size, len(data)), None)
        found = library.av_probe_input_format3(ctypes.byref(probed), 1, ctypes.byref(score))
        if (found and score.value > 25) or size >= len(data):
            return set(found[0].decode().split(",")) if found else set()
        size *= 2


def test_what_is_cut_is_truncated_and_what_lies_behind_is_ignored() -> None:
    for name in ("mp4", "mov without ftyp", "fragments", "matroska", "avi", "asf"):
        _, data = CONTAINERS[name]
        refuse_damaged(data + bytes(range(99, 200)) * 9)
        with pytest.raises(DecodeError, match="fewer than it announces") as caught:
            refuse_damaged(data[:-50])
        assert caught.value.reason == Reason.TRUNCATED
    mp4 = CONTAINERS["mp4"][1]
    with pytest.raises(DecodeError, match=r"unreadable: the MP4 has no index \(box moov\)"):
        refuse_damaged(mp4[: mp4.index(b"moov") - 4])
