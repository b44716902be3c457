"""Films of three seconds, each of which no two frames are alike, in containers and codecs of many kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from jobs.benchmarks.support.drawn_frames import drawn_frames
from jobs.benchmarks.support.file_surgery import with_edits

NUM_FRAMES, WIDTH, HEIGHT, FPS = 75, 128, 96, 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """How PyAV makes a file."""

    format: str = "mp4"
    codec: str = "libx264"
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    container: dict[str, str] = dataclasses.field(default_factory=dict)
    edit: Callable[[bytes], bytes] = bytes
    turn: int = 0
    pixels: str = "yuv420p"
    first_seconds: float = 0.0
    has_sound: bool = True

    def made(self, path: Path) -> bytes:
        """Return the bytes of the file: frames of noise that moves, so that references between frames matter."""
        noise = np.random.default_rng(0).integers(-30, 30, (HEIGHT, WIDTH + NUM_FRAMES, 3))
        with av.open(str(path), "w", format=self.format, options=self.container) as container:
            stream: Any = container.add_stream(self.codec, rate=FPS, options={"g": "12", **self.options})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, self.pixels
            if self.turn:
                stream.set_display_rotation(self.turn)
            sound = container.add_stream("aac", rate=16000) if self.has_sound else None
            for number, drawn in enumerate(drawn_frames(NUM_FRAMES, WIDTH, HEIGHT)):
                pixels = (drawn + noise[:, number : number + WIDTH]).clip(0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = round(self.first_seconds * FPS) + number, Fraction(1, FPS)
                container.mux(stream.encode(frame))
                if sound and number % FPS == 0:
                    samples = np.random.default_rng(number).normal(0, 0.2, (1, 16000)).astype(np.float32)
                    silence = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
                    silence.rate, silence.pts = 16000, number // FPS * 16000
                    container.mux(sound.encode(silence))
            container.mux(stream.encode())
            if sound:
                container.mux(sound.encode())
        return self.edit(path.read_bytes())


X265 = {"preset": "ultrafast", "x265-params": "log-level=0:keyint=12:min-keyint=12:open-gop=1:bframes=3"}
FILMS = {
    "index at the end": Film(),
    "index in front": Film(container={"movflags": "faststart"}),
    "fragments": Film(container={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "fragments that begin anywhere": Film(container={"movflags": "empty_moov", "frag_duration": "700000"}),
    "QuickTime": Film(format="mov"),
    "many frames that depend on others": Film(options={"bf": "4", "b_strategy": "0", "refs": "4"}),
    "open groups of H.264": Film(options={"x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    "open groups of HEVC": Film(codec="libx265", options=X265),
    "open groups of HEVC in Matroska": Film(format="matroska", codec="libx265", options=X265, has_sound=False),
    "an edit list": Film(edit=with_edits((1000, 12800 // 5)), has_sound=False),
    "a clock that starts late": Film(format="matroska", first_seconds=10, has_sound=False),
    "turned": Film(turn=90),
    "turned in Matroska": Film(format="matroska", turn=90, has_sound=False),
    "Matroska": Film(format="matroska"),
    "VP9": Film(format="webm", codec="libvpx-vp9", options={"cpu-used": "8"}, has_sound=False),
    "VP8 with frames that are not shown": Film(
        format="webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}, has_sound=False
    ),
    "AV1": Film(codec="libsvtav1", options={"preset": "12", "svtav1-params": "keyint=12"}),
    "MPEG-4 with B-frames": Film(codec="mpeg4", options={"bf": "2"}),
    "ten bits": Film(pixels="yuv420p10le"),
    "full range": Film(pixels="yuvj420p"),
    "FLV": Film(format="flv", has_sound=False),
    "MPEG-TS": Film(format="mpegts"),
    "HEVC in MPEG-TS": Film(format="mpegts", codec="libx265", options=X265, has_sound=False),
    "MPEG-2 in MPEG-TS": Film(format="mpegts", codec="mpeg2video", options={"bf": "2"}),
    "motion JPEG": Film(format="mov", codec="mjpeg", pixels="yuvj420p"),
}
WHOLE = {
    "MXF that counts packets": Film(format="mxf", has_sound=False),
    "AVI, which has no times": Film(format="avi", codec="mpeg4", options={"bf": "2"}, has_sound=False),
    "MPEG-PS": Film(format="mpeg", codec="mpeg2video", has_sound=False),
}
