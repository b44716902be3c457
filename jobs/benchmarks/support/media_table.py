"""The files of the conformance suite: for each, how it is created and the required behaviour of a decoder."""

from __future__ import annotations

from jobs.benchmarks.support.file_surgery import (
    appended,
    behind,
    cut,
    cut_head,
    flips,
    hole,
    prepended,
    replaced,
    swapped_boxes,
    with_edits,
)
from jobs.benchmarks.support.media_encoders import (
    ANY,
    AV1,
    MPEG2,
    VP9,
    X264,
    X265,
    clip,
    paused,
    with_sound,
)
from jobs.benchmarks.support.media_files import Rule
from jobs.benchmarks.support.media_looks import COLOUR, SHAPE

ONE = {"mp4": X264, "mkv": X264, "ts": X264, "flv": X264, "avi": "-c:v mpeg4 -q:v 2", "mpg": MPEG2, "webm": VP9} | {
    "wmv": "-c:v wmv2 -q:v 2",
    "gif": "-f gif",
}
"""Suffix → arguments of ffmpeg for a file of one frame."""

KNOWN_FAULTS = {
    "hole_h264.mkv": "decord shows frames that depend on a damaged packet without saying so",
    "flips_1_hevc.mp4": "the flipped bit lets two frames refer to one of the group before, which the HEVC decoder "
    "of FFmpeg replaces by another without saying so",
}
"""Known faults on damaged files, see `MediaFile.known_fault`."""

PLAIN = [
    clip("mpeg4_b0.avi", "-c:v mpeg4 -q:v 2 -bf 0"),
    clip("mpeg4_b1.avi", "-c:v mpeg4 -q:v 2 -bf 1", begins=0.04),
    clip("mpeg4_b2.avi", "-c:v mpeg4 -q:v 2 -bf 2", begins=0.04),
    clip("xvid_b0.avi", "-c:v libxvid -q:v 2"),
    clip(
        "xvid_packed.avi",
        "-c:v libxvid -q:v 2 -bf 2",
        numbers=(*range(47), 48),
        seconds=lambda number: (number + (25 < number < 48)) / 25,
        begins=0.08,
    ),
    clip("msmpeg4v3.avi", "-c:v msmpeg4 -q:v 2"),
    clip("msmpeg4v2.avi", "-c:v msmpeg4v2 -q:v 2"),
    clip("mjpeg.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
    clip("h264_b.avi", f"{X264} -g 15", begins=0.08),
    clip("h264_nob.avi", f"{X264} -g 15 -bf 0"),
    clip("cinepak.avi", "-c:v cinepak -pix_fmt rgb24", num_frames=6, size=(128, 96), max_colour_error=60),
    clip("huffyuv_rgb.avi", "-c:v huffyuv -pix_fmt bgra"),
    clip("raw_bgr24.avi", "-c:v rawvideo -pix_fmt bgr24", num_frames=10),
    clip("msvideo1.avi", "-c:v msvideo1", num_frames=10, max_colour_error=None),
    clip("ffv1_10bit.avi", "-c:v ffv1 -pix_fmt yuv422p10le"),
    clip("mpeg1_b.mpg", "-c:v mpeg1video -q:v 2 -bf 2 -g 12"),
    clip("mpeg2_b.mpg", f"{MPEG2} -bf 2"),
    clip("mpeg2_nob.mpg", f"{MPEG2} -bf 0"),
    clip("default.mpg", ""),
    clip("mpeg2_sound.vob", f"{with_sound(2, 'mp2')} {MPEG2} -bf 2 -f vob"),
    clip("dvd_wide.mpg", f"{MPEG2} -target pal-dvd -aspect 16:9", size=(720, 576), num_frames=30, shape=(1024, 576)),
    clip("h264_b.ts", f"{X264} -g 15"),
    clip("h264_nob.ts", f"{X264} -g 15 -bf 0"),
    clip("h264_sound.ts", f"{with_sound(2)} {X264} -g 15"),
    clip("default.ts", ""),
    clip("mpeg2_b.ts", f"{MPEG2} -bf 2"),
    clip("hevc_opengop.ts", f"{X265}:open-gop=1"),
    clip("h264_b.m2ts", f"{X264} -g 15 -mpegts_m2ts_mode 1 -f mpegts"),
    clip("wmv1.wmv", "-c:v wmv1 -q:v 2"),
    clip("wmv2.wmv", "-c:v wmv2 -q:v 2"),
    clip("msmpeg4.asf", f"{with_sound(2, 'wmav2')} -c:v msmpeg4 -q:v 2", begins=0.046),
    clip("sorenson.flv", "-c:v flv -q:v 2"),
    clip("h264_b.flv", f"{X264} -g 15"),
    clip("h264_sound.flv", f"{with_sound(2)} {X264} -g 15"),
    clip("h264.mkv", X264),
    clip("h264_opengop.mkv", f"{X264} -g 15 -x264-params open-gop=1"),
    clip("hevc_opengop.mkv", X265),
    clip("mpeg4_b2.mkv", "-c:v mpeg4 -q:v 2 -bf 2"),
    clip("mpeg2_b.mkv", f"{MPEG2} -bf 2"),
    clip("mjpeg.mkv", "-c:v mjpeg -q:v 2 -pix_fmt yuvj422p"),
    clip("ffv1.mkv", "-c:v ffv1 -pix_fmt bgr0"),
    clip("vp9.mkv", VP9),
    clip("av1.mkv", AV1),
    clip("prores.mkv", "-c:v prores_ks -pix_fmt yuv422p10le", num_frames=12),
    clip("piped.mkv", f"{X264} -g 15 -live 1 -f matroska"),
    clip("h264.mp4", X264),
    clip("h264_gop15.mp4", f"{X264} -g 15"),
    clip("h264_opengop.mp4", f"{X264} -g 15 -x264-params open-gop=1"),
    clip("h264_allkeys.mp4", f"{X264} -g 1"),
    clip("h264_faststart.mp4", f"{with_sound(2)} {X264} -g 15 -movflags +faststart"),
    clip("h264_every_frame.mp4", f"{X264} -g 15 -movflags +frag_every_frame+empty_moov"),
    clip("h264_fragmented.mp4", f"{with_sound(2)} {X264} -g 15 -movflags +frag_keyframe+empty_moov", begins=0.08),
    clip("h264_dash.mp4", f"{X264} -g 15 -movflags +dash+frag_keyframe+delay_moov"),
    clip("hevc.mp4", X265),
    clip("hevc_hvc1.mp4", f"{X265}:open-gop=0 -tag:v hvc1"),
    clip("mpeg4_b2.mp4", "-c:v mpeg4 -q:v 2 -bf 2"),
    clip("av1.mp4", AV1),
    clip("vp9.mp4", VP9),
    clip("h264.mov", f"{with_sound(2)} {X264} -g 15"),
    clip("prores.mov", "-c:v prores_ks -pix_fmt yuv422p10le", num_frames=12),
    clip("dnxhr.mov", "-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p", num_frames=8, max_colour_error=24),
    clip("mjpeg.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", num_frames=20),
    clip("png.mov", "-c:v png", num_frames=8),
    clip("qtrle.mov", "-c:v qtrle -pix_fmt rgb24", num_frames=20),
    clip("jpeg2000.mov", "-c:v jpeg2000 -pix_fmt yuv420p", num_frames=6),
    clip("timecode.mov", f"{X264} -timecode 01:00:00:00"),
    clip("h263.3gp", "-c:v h263 -q:v 2", size=(176, 144), shape=(192, 144)),
    clip("mpeg4.3g2", "-c:v mpeg4 -q:v 2"),
    clip("h264.f4v", f"{X264} -g 15"),
    clip("h264.m4v", f"{X264} -g 15 -f mp4"),
    clip("vp8.webm", "-c:v libvpx -deadline realtime -cpu-used 16 -crf 4 -b:v 4M -g 20"),
    clip("vp8_altref.webm", "-c:v libvpx -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 12 -b:v 3M -g 20"),
    clip("vp9.webm", f"{VP9} -pix_fmt yuv420p"),
    clip("vp9_altref.webm", "-c:v libvpx-vp9 -cpu-used 4 -auto-alt-ref 1 -lag-in-frames 12 -crf 14 -b:v 0 -g 20"),
    clip("av1.webm", AV1),
    clip("theora.ogv", "-c:v libtheora -q:v 10"),
    clip("mpeg2.mxf", f"{MPEG2} -bf 2"),
    clip("vp9.ivf", VP9),
    clip("av1.obu", AV1),
    clip("ffv1.nut", "-c:v ffv1 -pix_fmt yuv420p"),
    clip("pal.dv", "-c:v dvvideo -pix_fmt yuv420p", size=(720, 576), num_frames=6, shape=(768, 576)),
    clip("real.rm", "-c:v rv20 -q:v 2", size=(176, 144)),
    clip("raw.h264", f"{X264} -g 15"),
    clip("raw_nob.h264", f"{X264} -g 15 -bf 0"),
    clip("raw.hevc", X265),
    clip("raw.m2v", f"{MPEG2} -bf 2"),
    clip("raw.m4v", "-c:v mpeg4 -q:v 2 -f m4v"),
    clip("utvideo.avi", "-c:v utvideo -pix_fmt gbrp", num_frames=20),
    clip("zmbv.avi", "-c:v zmbv -pix_fmt bgr0", num_frames=20),
    clip("svq1.mov", "-c:v svq1 -q:v 2 -pix_fmt yuv410p", num_frames=20, max_colour_error=24),
    clip("flashsv.flv", "-c:v flashsv -pix_fmt bgr24", num_frames=20),
    clip("intra_refresh.mkv", f"{X264} -x264-params intra-refresh=1:keyint=15"),
    clip("temporal_layers.mp4", f"{X265}:temporal-layers=1"),
    clip("film_grain.mp4", f"{AV1} -svtav1-params film-grain=25", max_colour_error=None),
    clip("b_pyramid.mp4", "-c:v libx264 -preset slow -bf 8 -b-pyramid normal -refs 6 -crf 16 -pix_fmt yuv420p -g 30"),
    clip("weighted.mp4", f"-vf fade=in:0:30 {X264} -weightp 2", is_numbered=False, max_colour_error=None),
    clip("signed_offsets.mp4", f"{X264} -movflags +negative_cts_offsets"),
    clip("two_tracks.mkv", f"-map 0:v -map 0:v {X264} -disposition:v:0 default"),
    clip("animation.gif", "-f gif", max_colour_error=40, num_frames=20),
]
"""Each container with the usual codecs, with the encoders' defaults unless stated otherwise."""


TIME = [
    paused("vfr_screen.mp4", 10, 30, X264),
    paused("vfr_screen.mkv", 10, 30, X264),
    paused("vfr_call.webm", 5, 20, VP9),
    paused("vfr_pauses.ts", 10, 12, X264),
    paused("vfr_pauses.flv", 10, 12, X264),
    paused("vfr_pauses.wmv", 10, 12, "-c:v wmv2 -q:v 2"),
    paused("vfr_dropped.avi", 10, 5, "-c:v mpeg4 -q:v 2"),
    paused("vfr_pauses.mov", 10, 12, X264),
    paused("vfr_hevc.mkv", 10, 12, X265),
    paused("vfr_av1.webm", 10, 12, AV1),
    clip(
        "vfr_jitter.mp4",
        f"-vf settb=1/1000,setpts=N*40+17*(N-3*floor(N/3)) -fps_mode passthrough -enc_time_base 1/1000 {X264}",
        seconds=lambda number: number * 0.04 + number % 3 * 0.017,
    ),
    clip(
        "long_first.mp4",
        f"-vf setpts=N+ceil(N/1000)*100 -fps_mode passthrough {X264}",
        seconds=lambda number: (number + 100 * (number > 0)) / 25,
    ),
    clip("late_video.mp4", f"{with_sound(5)} -vf setpts=N+50 -fps_mode passthrough {X264}", begins=2.0),
    clip("late_video.mkv", f"{with_sound(5)} -vf setpts=N+50 -fps_mode passthrough {X264}", begins=2.0),
    clip("late_video.ts", f"{with_sound(5)} -vf setpts=N+50 -fps_mode passthrough {X264}", begins=2.0),
    clip("starts_at_10.mp4", f"{X264} -output_ts_offset 10"),
    clip("starts_at_10.mkv", f"{X264} -output_ts_offset 10"),
    clip("clock_wraps.ts", f"{X264} -g 15 -output_ts_offset 95442.6"),
    clip(
        "clock_wraps_later.ts", f"{with_sound(4)} {X264} -g 15 -output_ts_offset 95441.4", num_frames=100, begins=0.023
    ),
    clip("starts_below_0.mp4", f"{X264} -output_ts_offset -0.5 -avoid_negative_ts disabled", numbers=ANY),
    clip(
        "repeated_times.mkv",
        "-c copy -bsf:v setts=ts=floor(N/2)*80/1000/TB",
        source="mjpeg.mkv",
        seconds=lambda number: number // 2 * 0.08,
    ),
    clip("one_fps.mp4", X264, fps=1, num_frames=20),
    clip("ntsc.mp4", X264, fps=30000 / 1001),
    clip("fps_120.mkv", X264, fps=120),
    clip("hasty.gif", "-f gif", fps=100, num_frames=12, seconds=lambda number: number / 10, max_colour_error=40),
    clip("longer_sound.mp4", f"{with_sound(6)} {X264}"),
    clip("shorter_sound.mkv", f"{with_sound(0.5)} {X264}"),
    clip(
        "edit_skips.mp4",
        source="h264_gop15.mp4",
        edit=with_edits((1000, 1024), (600, 1024 + 35 * 512)),
        numbers=(*range(25), *range(35, 50)),
        seconds=lambda number: (number - 10 * (number > 30)) / 25,
    ),
    clip(
        "edit_repeats.mp4",
        source="h264_gop15.mp4",
        edit=with_edits((800, 1024), (800, 1024)),
        numbers=(*range(20), *range(20)),
        seconds=lambda number: 0,
    ),
    clip(
        "edit_from_middle.mp4",
        source="h264_gop15.mp4",
        edit=with_edits((1000, 1024 + 20 * 512)),
        numbers=tuple(range(20, 45)),
    ),
    clip("edit_begins_empty.mp4", source="h264_gop15.mp4", edit=with_edits((1000, -1), (2000, 1024)), rule=Rule.READ),
    clip("header_lies_long.mp4", source="h264_gop15.mp4", edit=behind(b"mvhd", 20, bytes((0, 0, 255, 0)))),
    clip("header_lies_short.mp4", source="h264_gop15.mp4", edit=behind(b"mdhd", 20, bytes((0, 0, 8, 0)))),
    clip("header_lies.avi", source="mpeg4_b0.avi", edit=behind(b"strh", 40, bytes((200, 0, 0, 0)))),
    clip("header_lies.mkv", source="h264.mkv", edit=behind(b"\x44\x89\x88", 3, b"\x41\x0d\x4c\x00")),
    clip("no_index.avi", source="mpeg4_b0.avi", edit=replaced(b"idx1", b"JUNK")),
    clip("one_gop.mp4", f"{X264} -g 250 -x264-params scenecut=0", num_frames=250),
    *(clip(f"one.{suffix}", encode, num_frames=1) for suffix, encode in ONE.items()),
    clip("two.mp4", X264, num_frames=2),
    clip("two.ts", X264, num_frames=2),
    clip("three.mpg", f"{MPEG2} -bf 2", num_frames=3),
    clip("last_is_key.flv", f"{X264} -g 50 -x264-params scenecut=0", num_frames=51),
    *(
        clip(f"cut_{start}_of_{source}", "-c copy", source=source, before=f"-ss {start}", numbers=ANY, rule=rule)
        for source in ("h264.mp4", "h264_opengop.mkv", "h264_opengop.mp4", "hevc_opengop.mkv", "hevc.mp4", "h264_b.ts")
        for start, rule in ((0.7, Rule.READ), (1.3, Rule.READ))
    ),
    clip("moved_of_h264.mkv", "-c copy", source="h264_gop15.mp4", before="-ss 0.7", numbers=ANY),
    clip("mid_gop.ts", source="h264_b.ts", edit=cut_head(0.3, 188), rule=Rule.MAY),
    clip("mid_gop_wraps.ts", source="clock_wraps_later.ts", edit=cut_head(0.2, 188), num_frames=100, rule=Rule.MAY),
    clip("mid_gop_hevc.ts", source="hevc_opengop.ts", edit=cut_head(0.3, 188), rule=Rule.MAY),
    clip("mid_gop_mpeg2.ts", source="mpeg2_b.ts", edit=cut_head(0.3, 188), rule=Rule.MAY),
    clip("mid_gop.mpg", source="mpeg2_b.mpg", edit=cut_head(0.3, 2048), rule=Rule.MAY),
]
"""Unusual times and selections of frames."""

_TEXT = b"This is a line of text and not a video.\n" * 40
_PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
DAMAGED = [
    *(
        clip(f"cut_{share}_{source}", source=source, edit=cut(share), rule=Rule.MAY)
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
        clip(
            name := f"hole_{source}",
            source=source,
            edit=hole(0.5, 0.55),
            rule=Rule.MAY,
            known_fault=KNOWN_FAULTS.get(name, ""),
        )
        for source in ("h264.mp4", "h264_b.ts", "mpeg2_b.mpg", "mpeg4_b2.avi", "vp9.webm", "h264.mkv")
    ),
    *(
        clip(f"gap_{source}", source=source, edit=hole(0.5, 0.55, filled=False), rule=Rule.MAY)
        for source in ("h264_b.ts", "mpeg2_b.mpg", "h264_b.flv", "h264.mkv")
    ),
    *(
        clip(
            name := f"flips_{count}_{source}",
            source=source,
            edit=flips(count, seed),
            rule=Rule.MAY,
            known_fault=KNOWN_FAULTS.get(name, ""),
        )
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
    clip("swapped_boxes.mp4", source="h264.mp4", edit=swapped_boxes, rule=Rule.MAY),
    clip("no_moov.mp4", source="h264.mp4", edit=replaced(b"moov", b"zoov"), rule=Rule.REFUSE),
    clip("unknown_codec.mp4", source="h264.mp4", edit=replaced(b"avc1", b"zzzz", 2), rule=Rule.REFUSE),
    clip("junk_behind.mp4", source="h264.mp4", edit=appended(bytes(range(200, 256)) * 9)),
    clip("junk_behind.ts", source="h264_b.ts", edit=appended(b"\xff" * 100)),
    clip("empty.mp4", rule=Rule.REFUSE),
    clip("zeros.mp4", edit=appended(bytes(5000)), rule=Rule.REFUSE),
    clip("text.mp4", edit=appended(_TEXT), rule=Rule.REFUSE),
    clip("page.mp4", edit=appended(b"<!DOCTYPE html><html><body>Not found</body></html>"), rule=Rule.REFUSE),
    clip("playlist.mp4", edit=appended(_PLAYLIST), rule=Rule.REFUSE),
    clip("playlist_in_front.ts", source="h264_b.ts", edit=prepended(_PLAYLIST), rule=Rule.REFUSE),
    clip("list_of_files.mp4", edit=appended(b"ffconcat version 1.0\nfile h264.mp4\n"), rule=Rule.REFUSE),
    clip(
        "session.mp4",
        edit=appended(b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"),
        rule=Rule.REFUSE,
    ),
    clip("image.jpg", "-frames:v 1 -c:v mjpeg -f image2", rule=Rule.MAY, num_frames=1),
    clip("sound.m4a", "-f lavfi -i sine=duration=1 -map 1:a -c:a aac", rule=Rule.REFUSE),
    clip(
        "sound_cover.m4a",
        f"{with_sound(1)} -frames:v 1 -c:v mjpeg -disposition:v attached_pic -f mp4",
        num_frames=2,
        rule=Rule.REFUSE,
    ),
    clip("sound.wav", "-f lavfi -i sine=duration=1 -map 1:a", rule=Rule.REFUSE),
]
"""Damaged and incomplete files."""

FILES = (*PLAIN, *TIME, *COLOUR, *SHAPE, *DAMAGED)
