"""Files of the conformance suite with unusual pictures."""

from __future__ import annotations

from jobs.benchmarks.support.file_surgery import with_matrix, with_roll
from jobs.benchmarks.support.media_encoders import AV1, H264, HEVC, MPEG2, VP9, X264, clip, tagged
from jobs.benchmarks.support.media_files import Rule

ALPHA = """-vf "format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='105+150*X/W'\""""
TRANSPARENT = {
    "prores_alpha.mov": "-c:v prores_ks -profile:v 4444 -pix_fmt yuva444p10le",
    "qtrle_alpha.mov": "-c:v qtrle -pix_fmt argb",
    "png_alpha.mov": "-c:v png -pix_fmt rgba",
    "ffv1_alpha.mkv": "-c:v ffv1 -pix_fmt bgra",
}

COLOUR = [
    clip("bt601.mp4", f"{tagged('smpte170m', 'smpte170m', 'smpte170m')} {H264}"),
    clip("bt470bg.mp4", f"{tagged('bt470bg', 'bt470bg', 'gamma28')} {H264}"),
    clip("bt709.mp4", f"{tagged('bt709', 'bt709', 'bt709')} {H264}"),
    clip("bt709.mkv", f"{tagged('bt709', 'bt709', 'bt709')} {H264}"),
    clip("bt709.ts", f"{tagged('bt709', 'bt709', 'bt709')} {H264}"),
    clip("bt709.mpg", f"{tagged('bt709', 'bt709', 'bt709')} {MPEG2} -bf 2"),
    clip("bt709_hd_untagged.mp4", X264, size=(1280, 720), num_frames=6),
    clip("bt2020_8bit.mp4", f"{tagged('bt2020', 'bt2020', 'bt709')} {H264}"),
    clip("ycgco.mp4", f"{H264} -pix_fmt yuv420p -colorspace ycgco", max_colour_error=None),
    clip("bt2020_constant.mp4", f"{H264} -pix_fmt yuv420p -colorspace bt2020c", max_colour_error=None),
    clip("gbr_tag.mp4", f"{H264} -pix_fmt yuv420p -colorspace rgb", max_colour_error=None),
    clip("bt709.webm", f"{tagged('bt709', 'bt709', 'bt709')} {VP9}"),
    clip("bt709_av1.mp4", f"{tagged('bt709', 'bt709', 'bt709')} {AV1}"),
    clip("smpte240m.mp4", f"{tagged('smpte240m', 'smpte240m', 'smpte240m')} {H264}"),
    clip("full_h264.mp4", f"{tagged('bt709', 'bt709', 'bt709', 'pc')} {H264}"),
    clip("full_601_h264.mp4", f"{tagged('smpte170m', 'smpte170m', 'smpte170m', 'pc')} {H264}"),
    clip("full_hevc10.mp4", f"{tagged('bt709', 'bt709', 'bt709', 'pc', 'yuv420p10le')} {HEVC}"),
    clip("full_av1.mp4", f"{tagged('bt709', 'bt709', 'bt709', 'pc')} {AV1}"),
    clip("full_vp9.webm", f"{tagged('bt709', 'bt709', 'bt709', 'pc')} {VP9}"),
    clip("hevc_10bit.mp4", f"{HEVC} -pix_fmt yuv420p10le"),
    clip("hevc_12bit.mkv", f"{HEVC} -pix_fmt yuv420p12le"),
    clip("h264_10bit.mkv", f"{H264} -pix_fmt yuv420p10le"),
    clip("h264_422_10bit.mp4", f"{H264} -pix_fmt yuv422p10le"),
    clip("vp9_10bit.webm", f"{VP9} -pix_fmt yuv420p10le"),
    clip("av1_10bit.mp4", f"{AV1} -pix_fmt yuv420p10le"),
    clip("vp9_rgb.webm", f"{VP9} -pix_fmt gbrp"),
    clip("hevc_444_12bit.mkv", f"{HEVC} -pix_fmt yuv444p12le"),
    clip("raw_uyvy.avi", "-c:v rawvideo -pix_fmt uyvy422", num_frames=8),
    clip("v210.mov", "-c:v v210", num_frames=8),
    clip("h264_444.mp4", f"{H264} -pix_fmt yuv444p"),
    clip("h264_rgb.mp4", "-c:v libx264rgb -preset veryfast -crf 16 -pix_fmt rgb24"),
    clip("h264_grey.mp4", f"{H264} -pix_fmt gray", max_colour_error=None),
    clip("dots.nut", "-c:v rawvideo -pix_fmt monob", max_colour_error=None, num_frames=8),
    clip("ffv1_grey16.mkv", "-c:v ffv1 -pix_fmt gray16le", max_colour_error=None, num_frames=10),
    *(
        clip(name, f"-vf split[a][b];[a]palettegen[p];[b][p]paletteuse -c:v {codec} -pix_fmt pal8", num_frames=8)
        for name, codec in (("palette.mov", "qtrle"), ("palette.avi", "rawvideo"))
    ),
    clip(
        "pq.mp4",
        f"{tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    clip(
        "pq.mkv",
        f"{tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    clip(
        "hlg.mp4",
        f"{tagged('bt2020', 'bt2020', 'arib-std-b67', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    clip(
        "hlg.ts",
        f"{tagged('bt2020', 'bt2020', 'arib-std-b67', 'tv', 'yuv420p10le')} {HEVC}",
        min_db=30.0,
        max_colour_error=None,
    ),
    clip(
        "pq_av1.webm",
        f"{tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {AV1}",
        min_db=30.0,
        max_colour_error=None,
    ),
    clip(
        "pq_vp9.webm",
        f"{tagged('bt2020', 'bt2020', 'smpte2084', 'tv', 'yuv420p10le')} {VP9} -profile:v 2",
        min_db=30.0,
        max_colour_error=None,
    ),
    *(
        clip(name, f"{ALPHA} {encode}", num_frames=8, is_transparent=True, max_colour_error=None)
        for name, encode in TRANSPARENT.items()
    ),
    clip(
        "vp9_alpha.webm",
        f"{ALPHA} -c:v libvpx-vp9 -pix_fmt yuva420p -crf 14 -b:v 0 -cpu-used 8 -deadline realtime",
        num_frames=8,
        max_colour_error=None,
    ),
]
"""Colour spaces and pixel formats."""

SHAPE = [
    *(
        clip(f"turned_{degrees}.{suffix}", source=source, edit=edit, turned=(-degrees // 90, False), shape=shape)
        for degrees, shape in ((90, (144, 256)), (180, (256, 144)), (270, (144, 256)))
        for suffix, source, edit in (
            ("mp4", "h264_gop15.mp4", with_matrix(degrees)),
            ("mkv", "with_colours.mkv", with_roll(degrees if degrees <= 180 else degrees - 360)),
        )
    ),
    clip("with_colours.mkv", f"{tagged('bt709', 'bt709', 'bt709')} {H264} -g 15 -write_crc32 0"),
    clip("turned_90.mov", source="h264.mov", edit=with_matrix(90), turned=(-1, False), shape=(144, 256)),
    clip("mirrored.mp4", source="h264_gop15.mp4", edit=with_matrix(0, True), turned=(0, True)),
    clip("upside_down.mp4", source="h264_gop15.mp4", edit=with_matrix(180, True), turned=(2, True)),
    clip("mirrored_90.mp4", source="h264_gop15.mp4", edit=with_matrix(90, True), turned=(-1, True), shape=(144, 256)),
    clip("mirrored_270.mp4", source="h264_gop15.mp4", edit=with_matrix(270, True), turned=(1, True), shape=(144, 256)),
    clip(
        "turned_at_keys.mp4",
        "-c copy -bsf:v h264_metadata=display_orientation=insert:rotate=270",
        source="h264_gop15.mp4",
        rule=Rule.MAY,
    ),
    *(
        clip(f"wide_pixels.{suffix}", f"{encode} -aspect 16:9", size=(192, 144), shape=(256, 144))
        for suffix, encode in {
            "mp4": X264,
            "mkv": X264,
            "ts": X264,
            "mpg": f"{MPEG2} -bf 2",
            "mov": X264,
            "avi": "-c:v mpeg4 -q:v 2",
        }.items()
    ),
    clip("tall_pixels.mp4", f"{X264} -aspect 4:3", size=(256, 144), shape=(192, 144)),
    clip(
        "wide_pixels_turned.mp4",
        source="wide_pixels.mp4",
        size=(192, 144),
        edit=with_matrix(90),
        shape=(144, 256),
        turned=(-1, False),
    ),
    clip("odd_444.mp4", f"{H264} -pix_fmt yuv444p", size=(255, 143)),
    clip("odd_420.webm", VP9, size=(255, 143)),
    clip("odd.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", size=(255, 143), num_frames=20),
    clip("odd_mpeg4.mkv", "-c:v mpeg4 -q:v 2", size=(255, 143)),
    clip("odd_mpeg2.ts", MPEG2, size=(255, 143)),
    clip("odd_theora.ogv", "-c:v libtheora -q:v 10", size=(255, 143)),
    clip("odd.gif", "-f gif", size=(131, 77), num_frames=10, max_colour_error=40),
    clip("cropped.mp4", X264, size=(250, 142)),
    clip("two_pixels.mp4", X264, size=(2, 2), num_frames=10, is_numbered=False, max_colour_error=None),
    clip("sixteen_pixels.mp4", X264, size=(16, 16), num_frames=10, is_numbered=False, max_colour_error=None),
    clip("ribbon.mp4", X264, size=(4096, 16), num_frames=10, is_numbered=False, max_colour_error=None),
    clip("column.mkv", X264, size=(32, 2048), num_frames=10, is_numbered=False, max_colour_error=None),
    clip("square.mp4", X264, size=(224, 224)),
    clip("uhd.mp4", X264, size=(3840, 2160), num_frames=2),
    clip("interlaced.ts", f"{MPEG2} -bf 2 -flags +ildct+ilme -top 1"),
    clip("interlaced_h264.mkv", f"{H264} -pix_fmt yuv420p -flags +ildct+ilme -x264-params tff=1"),
    clip("interlaced_h264.ts", f"{H264} -pix_fmt yuv420p -flags +ildct+ilme -x264-params bff=1 -g 15"),
    clip("smaller.ts", f"{X264} -g 15 -output_ts_offset 2", size=(192, 144), begins=0.0),
    clip("joined.ts", source="h264_b.ts", followed_by="smaller.ts", rule=Rule.MAY),
    clip("resized.ts", "-c copy", source="joined.ts", numbers=(*range(50), *range(50))),
    clip("resized.mkv", "-c copy", source="joined.ts", numbers=(*range(50), *range(50))),
    clip("resized.mp4", "-c copy", source="joined.ts", numbers=(*range(50), *range(50))),
    clip("sound_first.mp4", f"-f lavfi -i sine=duration=2 -map 1:a -map 0:v -c:a aac {X264}"),
    clip("sound_first.mkv", f"-f lavfi -i sine=duration=2 -map 1:a -map 0:v -c:a aac {X264}"),
    clip(
        "with_cover.mp4",
        "-f lavfi -i testsrc=s=64x64:d=0.04 -map 0:v -map 1:v -c:v:0 copy -c:v:1 png -disposition:v:1 attached_pic",
        source="h264_gop15.mp4",
    ),
    clip(
        "cover_first.mp4",
        "-f lavfi -i testsrc=s=64x64:d=0.04 -map 1:v -map 0:v -c:v:1 copy -c:v:0 png -disposition:v:0 attached_pic",
        source="h264_gop15.mp4",
    ),
    clip(
        "with_font.mkv",
        "-c copy -attach {folder}/h264.mkv -metadata:s:t mimetype=application/x-truetype-font",
        source="h264.mkv",
    ),
]
"""Size and orientation of the picture, and other contents of the file."""
