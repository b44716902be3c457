"""The files of the conformance suite: for each, how it is made and what is asked of a decoder, fixed beforehand."""

from __future__ import annotations

from typing import Any

from jobs.benchmarks.support.file_surgery import (
    appended,
    behind,
    cut,
    cut_head,
    flips,
    hole,
    prepended,
    remuxed,
    replaced,
    swapped_boxes,
    with_edits,
    with_matrix,
)
from jobs.benchmarks.support.media_files import MediaFile, Rule

X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -crf 16"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -crf 14 -x265-params log-level=none:keyint=25"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -crf 14 -b:v 0 -g 20"
H264, HEVC = (
    "-c:v libx264 -preset veryfast -crf 16",
    "-c:v libx265 -preset ultrafast -crf 14 -x265-params log-level=none",
)
AV1 = "-c:v libsvtav1 -preset 12 -crf 16 -g 20"
MPEG2 = "-c:v mpeg2video -q:v 2 -g 12"
ANY = ()
"""Numbers of a file that shows a part of its source: any that ascend."""
ONE = {"mp4": X264, "mkv": X264, "ts": X264, "flv": X264, "avi": "-c:v mpeg4 -q:v 2", "mpg": MPEG2, "webm": VP9} | {
    "wmv": "-c:v wmv2 -q:v 2",
    "gif": "-f gif",
}
"""Suffix → arguments of ffmpeg for a file of one frame."""
ALPHA = """-vf "format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='105+150*X/W'\""""
TRANSPARENT = {
    "prores_alpha.mov": "-c:v prores_ks -profile:v 4444 -pix_fmt yuva444p10le",
    "qtrle_alpha.mov": "-c:v qtrle -pix_fmt argb",
    "png_alpha.mov": "-c:v png -pix_fmt rgba",
    "ffv1_alpha.mkv": "-c:v ffv1 -pix_fmt bgra",
}


def _file(name: str, encode: str | None = None, **settings: Any) -> MediaFile:
    return MediaFile(name=name, encode=encode, **settings)


def _sound(seconds: float, codec: str = "aac") -> str:
    """Return ffmpeg's arguments for a tone as a second stream."""
    return f"-f lavfi -i sine=duration={seconds} -map 0:v -map 1:a -c:a {codec}"


def _paused(name: str, every: int, pause: int, encode: str) -> MediaFile:
    """A file that stands still for `pause` frames' time after each `every` frames."""
    command = f"-vf setpts=N+floor(N/{every})*{pause} -fps_mode passthrough {encode}"
    return _file(name, command, seconds=lambda number: (number + number // every * pause) / 25)


def _tagged(matrix: str, primaries: str, transfer: str, range: str = "tv", pixels: str = "yuv420p") -> str:
    """Return ffmpeg's arguments that convert to a colour space, and say so."""
    return (
        f"-vf scale=out_color_matrix={matrix}:out_range={range}:flags=accurate_rnd+full_chroma_int,format={pixels} "
        f"-colorspace {'bt2020nc' if matrix == 'bt2020' else matrix} -color_primaries {primaries} "
        f"-color_trc {transfer} -color_range {range}"
    )


PLAIN = [
    _file("mpeg4_b0.avi", "-c:v mpeg4 -q:v 2 -bf 0"),
    _file("mpeg4_b1.avi", "-c:v mpeg4 -q:v 2 -bf 1", begins=0.04),
    _file("mpeg4_b2.avi", "-c:v mpeg4 -q:v 2 -bf 2", begins=0.04),
    _file("xvid_b0.avi", "-c:v libxvid -q:v 2"),
    _file(
        "xvid_packed.avi",
        "-c:v libxvid -q:v 2 -bf 2",
        numbers=(*range(47), 48),
        seconds=lambda number: min(number, 47) / 25,
        begins=0.08,
    ),
    _file("msmpeg4v3.avi", "-c:v msmpeg4 -q:v 2"),
    _file("msmpeg4v2.avi", "-c:v msmpeg4v2 -q:v 2"),
    _file("mjpeg.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
    _file("h264_b.avi", f"{X264} -g 15", begins=0.08),
    _file("h264_nob.avi", f"{X264} -g 15 -bf 0"),
    _file("cinepak.avi", "-c:v cinepak -pix_fmt rgb24", num_frames=6, size=(128, 96), max_colour_error=60),
    _file("huffyuv_rgb.avi", "-c:v huffyuv -pix_fmt bgra"),
    _file("raw_bgr24.avi", "-c:v rawvideo -pix_fmt bgr24", num_frames=10),
    _file("msvideo1.avi", "-c:v msvideo1", num_frames=10, max_colour_error=None),
    _file("ffv1_10bit.avi", "-c:v ffv1 -pix_fmt yuv422p10le"),
    _file("mpeg1_b.mpg", "-c:v mpeg1video -q:v 2 -bf 2 -g 12"),
    _file("mpeg2_b.mpg", f"{MPEG2} -bf 2"),
    _file("mpeg2_nob.mpg", f"{MPEG2} -bf 0"),
    _file("default.mpg", ""),
    _file("mpeg2_sound.vob", f"{_sound(2, 'mp2')} {MPEG2} -bf 2 -f vob"),
    _file("dvd_wide.mpg", f"{MPEG2} -target pal-dvd -aspect 16:9", size=(720, 576), num_frames=30, shape=(1024, 576)),
    _file("h264_b.ts", f"{X264} -g 15"),
    _file("h264_nob.ts", f"{X264} -g 15 -bf 0"),
    _file("h264_sound.ts", f"{_sound(2)} {X264} -g 15"),
    _file("default.ts", ""),
    _file("mpeg2_b.ts", f"{MPEG2} -bf 2"),
    _file("hevc_opengop.ts", f"{X265}:open-gop=1"),
    _file("h264_b.m2ts", f"{X264} -g 15 -mpegts_m2ts_mode 1 -f mpegts"),
    _file("wmv1.wmv", "-c:v wmv1 -q:v 2"),
    _file("wmv2.wmv", "-c:v wmv2 -q:v 2"),
    _file("msmpeg4.asf", f"{_sound(2, 'wmav2')} -c:v msmpeg4 -q:v 2", begins=0.046),
    _file("sorenson.flv", "-c:v flv -q:v 2"),
    _file("h264_b.flv", f"{X264} -g 15"),
    _file("h264_sound.flv", f"{_sound(2)} {X264} -g 15"),
    _file("h264.mkv", X264),
    _file("h264_opengop.mkv", f"{X264} -g 15 -x264-params open-gop=1"),
    _file("hevc_opengop.mkv", X265),
    _file("mpeg4_b2.mkv", "-c:v mpeg4 -q:v 2 -bf 2"),
    _file("mpeg2_b.mkv", f"{MPEG2} -bf 2"),
    _file("mjpeg.mkv", "-c:v mjpeg -q:v 2 -pix_fmt yuvj422p"),
    _file("ffv1.mkv", "-c:v ffv1 -pix_fmt bgr0"),
    _file("vp9.mkv", VP9),
    _file("av1.mkv", AV1),
    _file("prores.mkv", "-c:v prores_ks -pix_fmt yuv422p10le", num_frames=12),
    _file("piped.mkv", f"{X264} -g 15 -live 1 -f matroska"),
    _file("h264.mp4", X264),
    _file("h264_gop15.mp4", f"{X264} -g 15"),
    _file("h264_opengop.mp4", f"{X264} -g 15 -x264-params open-gop=1"),
    _file("h264_allkeys.mp4", f"{X264} -g 1"),
    _file("h264_faststart.mp4", f"{_sound(2)} {X264} -g 15 -movflags +faststart"),
    _file("h264_fragmented.mp4", f"{_sound(2)} {X264} -g 15 -movflags +frag_keyframe+empty_moov", begins=0.08),
    _file("h264_dash.mp4", f"{X264} -g 15 -movflags +dash+frag_keyframe+delay_moov"),
    _file("hevc.mp4", X265),
    _file("hevc_hvc1.mp4", f"{X265}:open-gop=0 -tag:v hvc1"),
    _file("mpeg4_b2.mp4", "-c:v mpeg4 -q:v 2 -bf 2"),
    _file("av1.mp4", AV1),
    _file("vp9.mp4", VP9),
    _file("h264.mov", f"{_sound(2)} {X264} -g 15"),
    _file("prores.mov", "-c:v prores_ks -pix_fmt yuv422p10le", num_frames=12),
    _file("dnxhr.mov", "-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p", num_frames=8, max_colour_error=24),
    _file("mjpeg.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", num_frames=20),
    _file("png.mov", "-c:v png", num_frames=8),
    _file("qtrle.mov", "-c:v qtrle -pix_fmt rgb24", num_frames=20),
    _file("jpeg2000.mov", "-c:v jpeg2000 -pix_fmt yuv420p", num_frames=6),
    _file("timecode.mov", f"{X264} -timecode 01:00:00:00"),
    _file("h263.3gp", "-c:v h263 -q:v 2", size=(176, 144), shape=(192, 144)),
    _file("mpeg4.3g2", "-c:v mpeg4 -q:v 2"),
    _file("h264.f4v", f"{X264} -g 15"),
    _file("h264.m4v", f"{X264} -g 15 -f mp4"),
    _file("vp8.webm", "-c:v libvpx -deadline realtime -cpu-used 16 -crf 4 -b:v 4M -g 20"),
    _file("vp8_altref.webm", "-c:v libvpx -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 12 -b:v 3M -g 20"),
    _file("vp9.webm", f"{VP9} -pix_fmt yuv420p"),
    _file("vp9_altref.webm", "-c:v libvpx-vp9 -cpu-used 4 -auto-alt-ref 1 -lag-in-frames 12 -crf 14 -b:v 0 -g 20"),
    _file("av1.webm", AV1),
    _file("theora.ogv", "-c:v libtheora -q:v 10"),
    _file("animation.gif", "-f gif", max_colour_error=40, num_frames=20),
]
"""Each container with the usual codecs, by the encoders' defaults where nothing else is said."""


TIME = [
    _paused("vfr_screen.mp4", 10, 30, X264),
    _paused("vfr_screen.mkv", 10, 30, X264),
    _paused("vfr_call.webm", 5, 20, VP9),
    _paused("vfr_pauses.ts", 10, 12, X264),
    _paused("vfr_pauses.flv", 10, 12, X264),
    _paused("vfr_pauses.wmv", 10, 12, "-c:v wmv2 -q:v 2"),
    _file(
        "vfr_jitter.mp4",
        f"-vf settb=1/1000,setpts=N*40+17*(N-3*floor(N/3)) -fps_mode passthrough -enc_time_base 1/1000 {X264}",
        seconds=lambda number: number * 0.04 + number % 3 * 0.017,
    ),
    _file(
        "long_first.mp4",
        f"-vf setpts=N+ceil(N/1000)*100 -fps_mode passthrough {X264}",
        seconds=lambda number: (number + 100 * (number > 0)) / 25,
    ),
    _file("late_video.mp4", f"{_sound(5)} -vf setpts=N+50 -fps_mode passthrough {X264}", begins=2.0),
    _file("late_video.mkv", f"{_sound(5)} -vf setpts=N+50 -fps_mode passthrough {X264}", begins=2.0),
    _file("late_video.ts", f"{_sound(5)} -vf setpts=N+50 -fps_mode passthrough {X264}", begins=2.0),
    _file("starts_at_10.mp4", f"{X264} -output_ts_offset 10"),
    _file("starts_at_10.mkv", f"{X264} -output_ts_offset 10"),
    _file("clock_wraps.ts", f"{X264} -g 15 -output_ts_offset 95442.6"),
    _file("starts_below_0.mp4", f"{X264} -output_ts_offset -0.5 -avoid_negative_ts disabled", numbers=ANY),
    _file(
        "repeated_times.mkv",
        "-c copy -bsf:v setts=ts=floor(N/2)*80/1000/TB",
        source="mjpeg.mkv",
        seconds=lambda number: number // 2 * 0.08,
    ),
    _file("one_fps.mp4", X264, fps=1, num_frames=20),
    _file("ntsc.mp4", X264, fps=30000 / 1001),
    _file("fps_120.mkv", X264, fps=120),
    _file("longer_sound.mp4", f"{_sound(6)} {X264}"),
    _file("shorter_sound.mkv", f"{_sound(0.5)} {X264}"),
    _file(
        "edit_skips.mp4",
        source="h264_gop15.mp4",
        edit=with_edits((1000, 1024), (600, 1024 + 35 * 512)),
        numbers=(*range(25), *range(35, 50)),
        seconds=lambda number: (number - 10 * (number > 30)) / 25,
    ),
    _file(
        "edit_repeats.mp4",
        source="h264_gop15.mp4",
        edit=with_edits((800, 1024), (800, 1024)),
        numbers=(*range(20), *range(20)),
        seconds=lambda number: 0,
    ),
    _file(
        "edit_from_middle.mp4",
        source="h264_gop15.mp4",
        edit=with_edits((1000, 1024 + 20 * 512)),
        numbers=tuple(range(20, 45)),
    ),
    _file("edit_begins_empty.mp4", source="h264_gop15.mp4", edit=with_edits((1000, -1), (2000, 1024)), rule=Rule.READ),
    _file("header_lies_long.mp4", source="h264_gop15.mp4", edit=behind(b"mvhd", 20, bytes((0, 0, 255, 0)))),
    _file("header_lies_short.mp4", source="h264_gop15.mp4", edit=behind(b"mdhd", 20, bytes((0, 0, 8, 0)))),
    _file("header_lies.avi", source="mpeg4_b0.avi", edit=behind(b"strh", 40, bytes((200, 0, 0, 0)))),
    _file("header_lies.mkv", source="h264.mkv", edit=behind(b"\x44\x89\x88", 3, b"\x41\x0d\x4c\x00")),
    _file("no_index.avi", source="mpeg4_b0.avi", edit=replaced(b"idx1", b"JUNK")),
    _file("one_gop.mp4", f"{X264} -g 250 -x264-params scenecut=0", num_frames=250),
    *(_file(f"one.{suffix}", encode, num_frames=1) for suffix, encode in ONE.items()),
    _file("two.mp4", X264, num_frames=2),
    _file("two.ts", X264, num_frames=2),
    _file("three.mpg", f"{MPEG2} -bf 2", num_frames=3),
    _file("last_is_key.flv", f"{X264} -g 50 -x264-params scenecut=0", num_frames=51),
    *(
        _file(f"cut_{start}_of_{source}", "-c copy", source=source, before=f"-ss {start}", numbers=ANY, rule=rule)
        for source in ("h264.mp4", "h264_opengop.mkv", "h264_opengop.mp4", "hevc_opengop.mkv", "hevc.mp4", "h264_b.ts")
        for start, rule in ((0.7, Rule.READ), (1.3, Rule.READ))
    ),
    _file("moved_of_h264.mkv", "-c copy", source="h264_gop15.mp4", before="-ss 0.7", numbers=ANY),
    _file("mid_gop.ts", source="h264_b.ts", edit=cut_head(0.3, 188), rule=Rule.MAY),
    _file("mid_gop_hevc.ts", source="hevc_opengop.ts", edit=cut_head(0.3, 188), rule=Rule.MAY),
    _file("mid_gop_mpeg2.ts", source="mpeg2_b.ts", edit=cut_head(0.3, 188), rule=Rule.MAY),
    _file("mid_gop.mpg", source="mpeg2_b.mpg", edit=cut_head(0.3, 2048), rule=Rule.MAY),
]
"""When frames are shown, and which of them."""

COLOUR = [
    _file("bt601.mp4", f"{_tagged('smpte170m', 'smpte170m', 'smpte170m')} {H264}"),
    _file("bt470bg.mp4", f"{_tagged('bt470bg', 'bt470bg', 'gamma28')} {H264}"),
    _file("bt709.mp4", f"{_tagged('bt709', 'bt709', 'bt709')} {H264}"),
    _file("bt709.mkv", f"{_tagged('bt709', 'bt709', 'bt709')} {H264}"),
    _file("bt709.ts", f"{_tagged('bt709', 'bt709', 'bt709')} {H264}"),
    _file("bt709.mpg", f"{_tagged('bt709', 'bt709', 'bt709')} {MPEG2} -bf 2"),
    _file("bt709_hd_untagged.mp4", X264, size=(1280, 720), num_frames=6),
    _file("bt2020_8bit.mp4", f"{_tagged('bt2020', 'bt2020', 'bt709')} {H264}"),
    _file("bt709.webm", f"{_tagged('bt709', 'bt709', 'bt709')} {VP9}"),
    _file("bt709_av1.mp4", f"{_tagged('bt709', 'bt709', 'bt709')} {AV1}"),
    _file("smpte240m.mp4", f"{_tagged('smpte240m', 'smpte240m', 'smpte240m')} {H264}"),
    _file("full_h264.mp4", f"{_tagged('bt709', 'bt709', 'bt709', 'pc')} {H264}"),
    _file("full_601_h264.mp4", f"{_tagged('smpte170m', 'smpte170m', 'smpte170m', 'pc')} {H264}"),
    _file("full_hevc10.mp4", f"{_tagged('bt709', 'bt709', 'bt709', 'pc', 'yuv420p10le')} {HEVC}"),
    _file("full_av1.mp4", f"{_tagged('bt709', 'bt709', 'bt709', 'pc')} {AV1}"),
    _file("full_vp9.webm", f"{_tagged('bt709', 'bt709', 'bt709', 'pc')} {VP9}"),
    _file("hevc_10bit.mp4", f"{HEVC} -pix_fmt yuv420p10le"),
    _file("hevc_12bit.mkv", f"{HEVC} -pix_fmt yuv420p12le"),
    _file("h264_10bit.mkv", f"{H264} -pix_fmt yuv420p10le"),
    _file("h264_422_10bit.mp4", f"{H264} -pix_fmt yuv422p10le"),
    _file("vp9_10bit.webm", f"{VP9} -pix_fmt yuv420p10le"),
    _file("av1_10bit.mp4", f"{AV1} -pix_fmt yuv420p10le"),
    _file("h264_444.mp4", f"{H264} -pix_fmt yuv444p"),
    _file("h264_rgb.mp4", "-c:v libx264rgb -preset veryfast -crf 16 -pix_fmt rgb24"),
    _file("h264_grey.mp4", f"{H264} -pix_fmt gray", max_colour_error=None),
    _file("ffv1_grey16.mkv", "-c:v ffv1 -pix_fmt gray16le", max_colour_error=None, num_frames=10),
    _file(
        "qtrle_palette.mov",
        "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse -c:v qtrle -pix_fmt pal8",
        num_frames=10,
        max_colour_error=40,
    ),
    _file(
        "pq.mp4",
        f"{_tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    _file(
        "pq.mkv",
        f"{_tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    _file(
        "hlg.mp4",
        f"{_tagged('bt2020', 'bt2020', 'arib-std-b67', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    _file(
        "hlg.ts",
        f"{_tagged('bt2020', 'bt2020', 'arib-std-b67', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    _file(
        "pq_av1.webm",
        f"{_tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {AV1}",
        min_db=30.0,
        max_colour_error=None,
    ),
    _file(
        "pq_vp9.webm",
        f"{_tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {VP9} -profile:v 2",
        min_db=30.0,
        max_colour_error=None,
    ),
    *(
        _file(name, f"{ALPHA} {encode}", num_frames=8, is_transparent=True, max_colour_error=None)
        for name, encode in TRANSPARENT.items()
    ),
    _file(
        "vp9_alpha.webm",
        f"{ALPHA} -c:v libvpx-vp9 -pix_fmt yuva420p -crf 14 -b:v 0 -cpu-used 8 -deadline realtime",
        num_frames=8,
        max_colour_error=None,
    ),
]
"""What the numbers of a pixel mean."""

SHAPE = [
    *(
        _file(
            f"turned_{degrees}.{suffix}",
            source="h264_gop15.mp4",
            edit=edit,
            turned=(-degrees // 90, False),
            shape=(144, 256) if degrees % 180 else None,
        )
        for degrees in (90, 180, 270)
        for suffix, edit in (("mp4", with_matrix(degrees)), ("mkv", remuxed("matroska", -degrees)))
    ),
    _file("turned_90.mov", source="h264.mov", edit=with_matrix(90), turned=(-1, False), shape=(144, 256)),
    _file("mirrored.mp4", source="h264_gop15.mp4", edit=with_matrix(0, True), turned=(0, True)),
    _file("upside_down.mp4", source="h264_gop15.mp4", edit=with_matrix(180, True), turned=(2, True)),
    _file("mirrored_90.mp4", source="h264_gop15.mp4", edit=with_matrix(90, True), turned=(-1, True), shape=(144, 256)),
    _file("mirrored_270.mp4", source="h264_gop15.mp4", edit=with_matrix(270, True), turned=(1, True), shape=(144, 256)),
    *(
        _file(f"wide_pixels.{suffix}", f"{encode} -aspect 16:9", size=(192, 144), shape=(256, 144))
        for suffix, encode in {
            "mp4": X264,
            "mkv": X264,
            "ts": X264,
            "mpg": f"{MPEG2} -bf 2",
            "mov": X264,
            "avi": "-c:v mpeg4 -q:v 2",
        }.items()
    ),
    _file("tall_pixels.mp4", f"{X264} -aspect 4:3", size=(256, 144), shape=(192, 144)),
    _file(
        "wide_pixels_turned.mp4",
        source="wide_pixels.mp4",
        size=(192, 144),
        edit=with_matrix(90),
        shape=(144, 256),
        turned=(-1, False),
    ),
    _file("odd_444.mp4", f"{H264} -pix_fmt yuv444p", size=(255, 143)),
    _file("odd_420.webm", VP9, size=(255, 143)),
    _file("odd.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", size=(255, 143), num_frames=20),
    _file("odd.gif", "-f gif", size=(131, 77), num_frames=10, max_colour_error=40),
    _file("cropped.mp4", X264, size=(250, 142)),
    _file("two_pixels.mp4", X264, size=(2, 2), num_frames=10, is_numbered=False, max_colour_error=None),
    _file("sixteen_pixels.mp4", X264, size=(16, 16), num_frames=10, is_numbered=False, max_colour_error=None),
    _file("ribbon.mp4", X264, size=(4096, 16), num_frames=10, is_numbered=False, max_colour_error=None),
    _file("column.mkv", X264, size=(32, 2048), num_frames=10, is_numbered=False, max_colour_error=None),
    _file("square.mp4", X264, size=(224, 224)),
    _file("uhd.mp4", X264, size=(3840, 2160), num_frames=2),
    _file("interlaced.ts", f"{MPEG2} -bf 2 -flags +ildct+ilme -top 1"),
    _file("interlaced_h264.mkv", f"{H264} -pix_fmt yuv420p -flags +ildct+ilme -x264-params tff=1"),
    _file("interlaced_h264.ts", f"{H264} -pix_fmt yuv420p -flags +ildct+ilme -x264-params bff=1 -g 15"),
    _file("smaller.ts", f"{X264} -g 15 -output_ts_offset 2", size=(192, 144), begins=0.0),
    _file("resized.ts", source="h264_b.ts", followed_by="smaller.ts", numbers=(*range(50), *range(50))),
    _file("resized.mkv", "-c copy", source="resized.ts", numbers=(*range(50), *range(50))),
    _file("resized.mp4", "-c copy", source="resized.ts", numbers=(*range(50), *range(50))),
    _file("sound_first.mp4", f"-f lavfi -i sine=duration=2 -map 1:a -map 0:v -c:a aac {X264}"),
    _file("sound_first.mkv", f"-f lavfi -i sine=duration=2 -map 1:a -map 0:v -c:a aac {X264}"),
    _file(
        "with_cover.mp4",
        "-f lavfi -i testsrc=s=64x64:d=0.04 -map 0:v -map 1:v -c:v:0 copy -c:v:1 png -disposition:v:1 attached_pic",
        source="h264_gop15.mp4",
    ),
    _file(
        "cover_first.mp4",
        "-f lavfi -i testsrc=s=64x64:d=0.04 -map 1:v -map 0:v -c:v:1 copy -c:v:0 png -disposition:v:0 attached_pic",
        source="h264_gop15.mp4",
    ),
    _file(
        "with_font.mkv",
        "-c copy -attach {folder}/h264.mkv -metadata:s:t mimetype=application/x-truetype-font",
        source="h264.mkv",
    ),
]
"""How large the picture is and which way up, and what else the file holds."""

_TEXT = b"This is a line of text and not a video.\n" * 40
_PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
DAMAGED = [
    *(
        _file(f"cut_{share}_{source}", source=source, edit=cut(share), rule=Rule.MAY)
        for share in (0.5, 0.97)
        for source in (
            "h264.mp4",
            "h264_faststart.mp4",
            "h264_fragmented.mp4",
            "h264.mkv",
            "h264_b.ts",
            "mpeg2_b.mpg",
            "mpeg4_b2.avi",
            "h264_b.flv",
            "wmv2.wmv",
            "vp9.webm",
            "theora.ogv",
            "animation.gif",
            "piped.mkv",
        )
    ),
    *(
        _file(f"hole_{source}", source=source, edit=hole(0.5, 0.55), rule=Rule.MAY)
        for source in ("h264.mp4", "h264_b.ts", "mpeg2_b.mpg", "mpeg4_b2.avi", "vp9.webm", "h264.mkv")
    ),
    *(
        _file(f"gap_{source}", source=source, edit=hole(0.5, 0.55, filled=False), rule=Rule.MAY)
        for source in ("h264_b.ts", "mpeg2_b.mpg", "h264_b.flv", "h264.mkv")
    ),
    *(
        _file(f"flips_{count}_{source}", source=source, edit=flips(count, seed), rule=Rule.MAY)
        for seed, count in enumerate((1, 5, 40))
        for source in (
            "h264.mp4",
            "hevc.mp4",
            "mpeg4_b2.avi",
            "h264_b.ts",
            "vp9.webm",
            "av1.mp4",
            "mpeg2_b.mpg",
            "mjpeg.avi",
        )
    ),
    _file("swapped_boxes.mp4", source="h264.mp4", edit=swapped_boxes, rule=Rule.MAY),
    _file("no_moov.mp4", source="h264.mp4", edit=replaced(b"moov", b"zoov"), rule=Rule.REFUSE),
    _file("unknown_codec.mp4", source="h264.mp4", edit=replaced(b"avc1", b"zzzz", 2), rule=Rule.REFUSE),
    _file("junk_behind.mp4", source="h264.mp4", edit=appended(bytes(range(200, 256)) * 9)),
    _file("junk_behind.ts", source="h264_b.ts", edit=appended(b"\xff" * 100)),
    _file("empty.mp4", rule=Rule.REFUSE),
    _file("zeros.mp4", edit=appended(bytes(5000)), rule=Rule.REFUSE),
    _file("text.mp4", edit=appended(_TEXT), rule=Rule.REFUSE),
    _file("page.mp4", edit=appended(b"<!DOCTYPE html><html><body>Not found</body></html>"), rule=Rule.REFUSE),
    _file("playlist.mp4", edit=appended(_PLAYLIST), rule=Rule.REFUSE),
    _file("playlist_in_front.ts", source="h264_b.ts", edit=prepended(_PLAYLIST), rule=Rule.REFUSE),
    _file("list_of_files.mp4", edit=appended(b"ffconcat version 1.0\nfile h264.mp4\n"), rule=Rule.REFUSE),
    _file(
        "session.mp4",
        edit=appended(b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"),
        rule=Rule.REFUSE,
    ),
    _file("image.jpg", "-frames:v 1 -c:v mjpeg -f image2", rule=Rule.MAY, num_frames=1),
    _file("sound.m4a", "-f lavfi -i sine=duration=1 -map 1:a -c:a aac", rule=Rule.REFUSE),
    _file(
        "sound_cover.m4a",
        f"{_sound(1)} -frames:v 1 -c:v mjpeg -disposition:v attached_pic -f mp4",
        num_frames=2,
        rule=Rule.REFUSE,
    ),
    _file("sound.wav", "-f lavfi -i sine=duration=1 -map 1:a", rule=Rule.REFUSE),
]
"""What is no whole video."""

FILES = (*PLAIN, *TIME, *COLOUR, *SHAPE, *DAMAGED)
