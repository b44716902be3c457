"""Detect the format of a file by its bytes alone: videos and pictures that may be opened, and a name for anything else.

No decoder is involved. FFmpeg's probes select any of 300 demuxers, and some of those open what the file names: a
playlist in front of a video makes them fetch an address. So a file is opened as what its first bytes say, or rejected.

FFmpeg's probes, where a decoder runs them by itself (decord 0.6.0: FFmpeg 4.1; torchcodec), inspect the first MiB:
- `hls`, `concat`, `vobsub` and `mlv` compare the first bytes, after an ID3 tag if there is one. No container of
  `container_of` begins with one of these.
- `sdp` needs a line that begins with `c=IN IP`, after lines of which none begins with a zero byte, and beats weaker
  probes: those of MPEG-TS, of elementary streams, of an MP4 or a GIF with odd headers.
- `dash` and `imf` need `<MPD` or `<CompositionPlaylist` before the first zero byte.
- `image2`, `rtsp` and `sap` use the file's name, which the bytes do not contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.decode.distant import DistantBytes
from pipeline.records import DecodeError, Kind, Reason

Content = bytes | DistantBytes

PROBED_BYTES = 2**20
"""Number of bytes of a file that FFmpeg's probes inspect."""


@dataclass(frozen=True)
class Container:
    """A file format that may be opened as a video."""

    name: str
    """Name in messages."""
    demuxer: str
    """FFmpeg's name: `av.open(..., format=demuxer)`."""


MP4 = Container("MP4", "mov")
MATROSKA = Container("Matroska", "matroska")
AVI = Container("AVI", "avi")
ASF = Container("ASF", "asf")
FLV = Container("FLV", "flv")
TS = Container("MPEG-TS", "mpegts")
BEGINNINGS: tuple[tuple[bytes, Container], ...] = (
    (rb"....(?:ftyp|moov|mdat|moof|styp|sidx|free|skip|wide|pnot|uuid)", MP4),
    (rb"\x1a\x45\xdf\xa3", MATROSKA),
    (rb"RIFF....AVI[ \x19]", AVI),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", ASF),
    (rb"FLV[\x00-\x04]", FLV),
    (rb"OggS\x00", Container("Ogg", "ogg")),
    (rb"GIF8[79]a", Container("GIF", "gif")),
    (rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", Container("MXF", "mxf")),
    (rb"DKIF\x00\x00", Container("IVF", "ivf")),
    (rb"nut/multimedia container\x00", Container("NUT", "nut")),
    (rb"\.RMF\x00\x00", Container("RealMedia", "rm")),
    (rb"\x1f\x07\x00[\x3f\xbf]", Container("DV", "dv")),
    (rb"\x12\x00\x0a", Container("AV1 video", "obu")),
    (rb"\x00\x00\x01[\xba\xbb\xbd\xc0-\xef]", Container("MPEG-PS", "mpeg")),
    (rb"\x00{2,3}\x01\xb3", Container("MPEG video", "mpegvideo")),
    (rb"\x00{2,3}\x01(?:\xb0|[\x00-\x0f]\x00\x00\x01\x20)", Container("MPEG-4 video", "m4v")),
    (rb"\x00{2,3}\x01(?:[\x40\x42\x46]\x01)", Container("HEVC video", "hevc")),
    (rb"\x00{2,3}\x01[\x09\x27\x47\x67\x06]", Container("H.264 video", "h264")),
)
"""Pattern of the first bytes → container. None of these demuxers opens anything but the bytes it is given."""
FORMAT_WHITELIST = ",".join(sorted({container.demuxer for _, container in BEGINNINGS} | {TS.demuxer}))
"""Value of FFmpeg's option `format_whitelist`."""

PICTURES: tuple[tuple[bytes, str], ...] = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"....ftyp(?:avi[fs]|m[is]f1....(?:....){0,8}?avi[fs])", "AVIF"),
    (rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]", "TIFF"),
    (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", "BMP"),
)
"""Pattern of the first bytes → Pillow's name of a format that may be opened: none of them starts another program."""

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer: fetch the file that it stands for with `git lfs pull`"),
    (rb"#EXTM3U", "an HLS playlist"),
    (rb"ffconcat", "an ffconcat playlist"),
    (rb"\[playlist\]", "a PLS playlist"),
    (rb"# VobSub", "a VobSub index"),
    (rb"MLVI", "a Magic Lantern recording"),
    (rb"\[Reference\]|<asx|ASF https?:", "an ASF redirector"),
    (rb"RTSPtext|rtspu?://|rtsps://", "an RTSP redirector"),
    (rb"v=0\r?\n|[acmostv]=[^\n]*\n[acmostv]=|c=IN IP", "an SDP session description"),
    (rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:\w+:)?MPD", "a DASH manifest"),
    (rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:\w+:)?(?:CompositionPlaylist|AssetMap)", "an IMF playlist"),
    (rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<SmoothStreamingMedia", "a Smooth Streaming manifest"),
    (rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<smil", "a SMIL presentation"),
    (rb"(?:<\?xml[^>]*>\s*)?(?:<!.*?>\s*)*<svg", "an SVG drawing"),
    (rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)", "an HTML page"),
    (rb"<\?xml|<\w+[\s>]", "an XML document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document"),
    (rb"%PDF-", "a PDF document"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!|\xfd7zXZ\x00|BZh[1-9]|\x28\xb5\x2f\xfd", "an archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"\x7fELF|MZ.{2,60}\x00|#!", "a program"),
    (rb"SQLite format 3\x00", "an SQLite database"),
    (rb"PAR1", "a Parquet table"),
    (rb"\x89HDF|\x93NUMPY", "an array"),
    (rb"YUV4MPEG2 ", "a YUV4MPEG2 film"),
    (rb"\xb7\xd8\x00\x20\x37\x49\xda\x11", "a WTV film"),
    (rb"\x00{4}\x01\xbc", "a GXF film"),
    (rb"[FCZ]WS[\x03-\x2d]", "a Flash film"),
    (rb"8BPS", "a Photoshop picture"),
    (rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", "a HEIF picture"),
    (rb"\x00\x00\x00\x0c(?:jP  |JXL )|\xff\x0a|\xff\x4f\xff\x51", "a JPEG 2000 or JPEG XL picture"),
    (rb"qoif|DDS |P[1-7]\s", "a DDS, QOI or PNM picture"),
    (rb"RIFF....WAVE|fLaC|ID3|FORM....AIF|\.snd|\xff[\xe2\xe3\xf1-\xf3\xf9-\xfb]", "sound"),
    (rb"\{\s*[\"}]|\[\s*[\[{\"\d\]]", "a JSON text"),
)
"""Pattern of the first bytes, case-insensitive → common name of the format."""
_FLAGS = re.DOTALL | re.IGNORECASE
_BLANK = b"\xef\xbb\xbf \t\r\n"
_XML_PLAYLIST = re.compile(rb"<(?:\w+:)?(?:MPD|CompositionPlaylist)", re.IGNORECASE)
_UNREAD = {
    "a picture": (("picture", "drawing", "PostScript"), "JPEG or PNG"),
    "a video": (("film",), "MP4 or Matroska"),
}
"""Expected kind → words in the names of unsupported formats of this kind, and formats to convert them to."""
_BOXES = frozenset(b"ftyp moov mdat moof mfra free skip wide uuid sidx styp meta pnot udta".split())
"""Outer boxes of an MP4. If one of these ends past the end of the file, the file is truncated; other bytes are junk."""
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def container_of(data: Content) -> Container:
    """Detect the container. DecodeError, naming the actual format, if the bytes are not a video."""
    _refuse_empty(data)
    container = _video(data)
    if container is None or (container is MP4 and _is_picture_only(data)):
        raise _refusal(data, "a video")
    if playlist := _hidden_playlist(data):
        raise DecodeError(Reason.UNREADABLE, f"the file is {playlist} that begins like {container.name}, not a video")
    return container


def picture_format(data: Content) -> str:
    """Detect Pillow's name of the format. DecodeError, naming the actual format, if the bytes are not a picture."""
    _refuse_empty(data)
    if name := _picture(data):
        return name
    raise _refusal(data, "a picture")


def kind_by_bytes(data: Content) -> Kind | None:
    """Return the kind of a file by its content; None if it is neither a video nor an image."""
    if (picture := _picture(data)) and picture != "GIF":
        return Kind.IMAGE
    container = _video(data) if data else None
    return Kind.VIDEO if container and not (container is MP4 and _is_picture_only(data)) else None


def refuse_damaged(data: Content) -> None:
    """Raise DecodeError if a file is shorter than its headers announce, or an MP4 lacks its index.

    Decoders do not notice: they repeat the last frame, or retry for minutes.
    """
    _refuse_empty(data)
    match _video(data):
        case Container(demuxer="mov"):
            announced = _mp4_length(data)
        case Container(demuxer="avi"):
            announced = _avi_length(data)
        case Container(demuxer="matroska"):
            announced = _matroska_length(data)
        case Container(demuxer="asf"):
            announced = _asf_length(data)
        case Container(demuxer="gif") if not data[-PROBED_BYTES:].rstrip(b"\0").endswith(b";"):
            raise DecodeError(Reason.TRUNCATED, "the GIF lacks the byte that ends it")
        case _:
            announced = 0
    if announced > len(data):
        raise DecodeError(
            Reason.TRUNCATED, f"the file has {len(data)} bytes, {announced - len(data)} fewer than it announces"
        )


def _refuse_empty(data: Content) -> None:
    if not data:
        raise DecodeError(Reason.EMPTY, "the file has no bytes")


def _picture(data: Content) -> str | None:
    return next((name for pattern, name in PICTURES if re.match(pattern, data[:64], re.DOTALL)), None)


def _video(data: Content) -> Container | None:
    """Detect the container by the first bytes, and MPEG-TS by the spacing of its packets."""
    head = data[:64]
    for pattern, container in BEGINNINGS:
        if re.match(pattern, head, re.DOTALL):
            return container
    return TS if _is_transport_stream(data) else None


def _is_transport_stream(data: Content) -> bool:
    """Return whether the bytes are a sequence of packets of 188, 192 or 204 bytes.

    A file cut out of a stream may begin inside a packet. One that begins with text is rejected: it could be a playlist.
    """
    if data[0] != 0x47 and ((data[:8].isascii() and _is_text(data[:8])) or _other(data)):
        return False
    for size in (188, 192, 204):
        for start in range(min(size, len(data))):
            marks = data[start : start + 64 * size : size]
            if marks[0] == 0x47 and len(marks) >= 2 and marks.count(0x47) > 0.8 * len(marks):
                return True
    return False


def _is_picture_only(data: Content) -> bool:
    """Return whether an MP4 is a HEIF or AVIF file without a track."""
    has_track = any(kind == b"moov" for kind, _ in _boxes(data))
    return not has_track and bool(_picture(data) or "HEIF" in (_other(data) or ""))


def _hidden_playlist(data: Content) -> str | None:
    """Return which playlist FFmpeg's probes could detect in a file that begins like a container; see the top of this
    file."""
    if data[0] and data.find(b"c=IN IP", 0, PROBED_BYTES) >= 0:  # the probe stops at a line that begins with zero
        start = 0
        while start < min(len(data), PROBED_BYTES) and data[start]:
            if data.startswith(b"c=IN IP", start):
                return "an SDP session description"
            start = data.find(b"\n", start) + 1 or len(data)
            start += data[start : start + 1] == b"\r"
    zero = data.find(b"\0", 0, PROBED_BYTES)
    return "a playlist" if _XML_PLAYLIST.search(data[: zero if zero >= 0 else PROBED_BYTES]) else None


def _other(data: Content) -> str | None:
    """Return the common name of a format that is not opened; None if it is unknown."""
    head = data[:4096].lstrip(_BLANK)
    return next((name for pattern, name in _OTHERS if re.match(pattern, head, _FLAGS)), None)


def _is_text(data: Content) -> bool:
    return all((byte >= 0x20 and byte != 0x7F) or byte in b"\t\r\n\f" for byte in data)


def _refusal(data: Content, expected_kind: str) -> DecodeError:
    """Return the error for bytes that are not `expected_kind`, with the same text on every run."""
    name = _other(data)
    if name == "sound" and expected_kind == "a video":
        return DecodeError(Reason.NO_VIDEO_STREAM, "the file holds audio, no video")
    if name is None and (picture := _picture(data)):
        name = f"{'an' if picture == 'AVIF' else 'a'} {picture} picture"
    elif name is None and (video := _video(data)):
        name = f"a video ({video.name})"
    elif name is None and not any(data):
        name = "nothing but zeros"
    elif name is None and (data[:2] in (b"\xff\xfe", b"\xfe\xff") or _is_text(data[:512])):
        name = "a text"
    if name is None:
        begins = f"the file begins with {data[:8].hex(' ')}, like no format of {expected_kind}"
        return DecodeError(Reason.UNREADABLE, f"{begins} that is read here: convert it, if it is one")
    words, better = _UNREAD[expected_kind]
    if any(word in name for word in words):
        detail = f"the file is {name}, which is not read here: convert it to {better}"
        return DecodeError(Reason.UNSUPPORTED_CODEC, detail)
    return DecodeError(Reason.UNREADABLE, f"the file is {name}, not {expected_kind}")


def _boxes(data: Content) -> Iterator[tuple[bytes, int]]:
    """Yield the type and the end of each outer box of an MP4."""
    position = 0
    while position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:  # a 64-bit size follows the type
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        end = position + size if size else len(data)  # 0: to the end of the file
        if 0 < size < 8 or (end > len(data) and kind not in _BOXES):  # junk, which players ignore
            return
        yield kind, end
        position = end


def _mp4_length(data: Content) -> int:
    """Return the end of the last outer box. DecodeError if all boxes are complete and none is an index."""
    boxes = list(_boxes(data))
    end = max((end for _, end in boxes), default=0)
    if end <= len(data) and b"moov" not in {kind for kind, _ in boxes}:
        detail = (
            "the MP4 has no index (box moov): its recording was cut short, or it is a segment without its first one"
        )
        raise DecodeError(Reason.UNREADABLE, detail)
    return end


def _avi_length(data: Content) -> int:
    """Return the end of the last RIFF list; old writers count its 8 bytes twice."""
    end = 0
    while data.startswith(b"RIFF", end):
        end += 8 + int.from_bytes(data[end + 4 : end + 8], "little")
        end += end % 2
    return end if end > len(data) + 8 else 0


def _matroska_length(data: Content) -> int:
    """Return the end of the first segment; 0 if it was written as a stream, without a length."""
    header_size, position = _ebml_size(data, 4)
    segment_size, first = _ebml_size(data, position + (header_size or 0) + 4)
    return 0 if segment_size is None else first + segment_size


def _ebml_size(data: Content, position: int) -> tuple[int | None, int]:
    """Return the variable-length size at `position` (None: unknown) and the position after it."""
    if position >= len(data) or not data[position]:
        return None, position
    length = 9 - data[position].bit_length()
    size = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return None if size == (1 << 7 * length) - 1 else size, position + length


def _asf_length(data: Content) -> int:
    """Return the size of the file that the header states; 0 for a broadcast, which states none."""
    start = data.find(_ASF_FILE, 0, 2**16)
    is_broadcast = start < 0 or len(data) <= start + 88 or bool(data[start + 88] & 1)
    return 0 if is_broadcast else int.from_bytes(data[start + 40 : start + 48], "little")
