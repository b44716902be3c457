"""Captions written by hand, by spreadsheets and by scripts."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.benchmarks.support.annotation_case import Case, clip
from jobs.benchmarks.support.published_captions import MSRVTT, VIDEOS, lines, parquet

ROW = {"clip_name": "a.mp4", "caption": "a dog"}
DOG = [clip("a.mp4", "a dog")]
BOTH = [clip("a.mp4", "a dog"), clip("b.mp4", "a cat")]
AB = ("a.mp4", "b.mp4")
TABLE = "path,text\na.mp4,a dog\nb.mp4,a cat\n"


def untidy() -> list[Case]:
    """Return the cases."""
    return [
        *(*_dialects(), *_of_programs(), *_damaged(), *_json()),
        *(*_columns(), *_names(), *_splits(), *_lists(), *_sidecars()),
    ]


def rewritten(name: str, old: str, new: str) -> Any:
    """Return a remedy that replaces a text in a file."""

    def remedy(folder: Path) -> dict[str, Any]:
        path = folder / name
        path.write_text(path.read_text().replace(old, new))
        return {}

    return remedy


def converted(folder: Path) -> dict[str, Any]:
    """Apply the remedy in the error message for another encoding."""
    path = folder / "c.csv"
    path.write_bytes(path.read_bytes().decode("cp1252").encode())
    return {}


def csv_case(name: str, text: str | bytes, **more: Any) -> Case:
    """Return a case of one table, with two clips by default."""
    settings = {"files": {"c.csv": text}, "annotations": ("c.csv",), "videos": AB, "clips": BOTH} | more
    return Case(name=name, **settings)  # pyright: ignore[reportArgumentType]


def lines_case(name: str, *rows: dict[str, Any], **more: Any) -> Case:
    """Return a case of JSON lines."""
    return Case(name=name, **{"files": {"c.jsonl": lines(*rows)}, "annotations": ("c.jsonl",), "clips": DOG} | more)


def _dialects() -> list[Case]:
    long = "word " * 40_000
    return [
        csv_case("csv", TABLE),
        csv_case("csv_crlf_mark", "\ufeff" + TABLE.replace("\n", "\r\n")),
        csv_case("csv_carriage_returns", TABLE.replace("\n", "\r")),
        csv_case("csv_tabs", TABLE.replace(",", "\t")),
        csv_case("csv_semicolons", TABLE.replace(",", ";")),
        csv_case("csv_bars", TABLE.replace(",", "|")),
        csv_case("csv_blanks", TABLE.replace(",", ", ")),
        csv_case("csv_quoted", '"path","text"\n"a.mp4","a dog"\n"b.mp4","a cat"\n'),
        csv_case("csv_upper", TABLE.replace("path,text", "PATH,Text")),
        csv_case("csv_index", ",path,text\n0,a.mp4,a dog\n1,b.mp4,a cat\n"),
        csv_case("csv_utf16", TABLE.encode("utf-16")),
        csv_case("csv_gzip", gzip.compress(TABLE.encode())),
        csv_case("csv_zstd", pa.Codec("zstd").compress(TABLE.encode(), asbytes=True)),
        csv_case("csv_cp1252", TABLE.replace("a cat", "café").encode("cp1252"), refusal=r"c\.csv:3: not UTF-8.*iconv",
                 remedy=converted, clips=[DOG[0], clip("b.mp4", "café")]),
        csv_case("csv_long_field", f"path,text\na.mp4,{long}\n", videos=("a.mp4",), clips=[clip("a.mp4",
             long.strip())]),
        csv_case("csv_newline_in_quotes", 'path,text\na.mp4,"a\ndog"\nb.mp4,a cat\n'),
        csv_case("csv_doubled_quotes", 'path,text\na.mp4,"a ""big"" dog"\n', clips=[clip("a.mp4", 'a "big" dog')]),
        csv_case("csv_without_header", "a.mp4,a dog\nb.mp4,a cat\n"),
        csv_case("csv_without_header_or_suffix", "a,a dog\nb,a cat\n", refusal="--columns clip=1 caption=2",
                 remedy=lambda _: {"columns": ("clip=1", "caption=2")}),
        csv_case("names_and_words", "a.mp4 a dog\nb.mp4 a cat\n", refusal="--columns clip=1 caption=2",
                 remedy=lambda _: {"columns": ("clip=1", "caption=2")}),
        csv_case("csv_comments", "# of today\n\n" + TABLE),
        csv_case("csv_excel", "sep=;\n" + TABLE.replace(",", ";")),
        csv_case("csv_utf16_unmarked", TABLE.encode("utf-16-le"), refusal="iconv -f utf-16le",
                 remedy=lambda folder: _write(folder / "c.csv", TABLE) and {}),
        Case(name="parquet", files={"c.parquet": parquet([{"path": "a.mp4", "text": "a dog"}])},
             annotations=("c.parquet",), clips=DOG),
        Case(name="parts", files={f"parts/part-{i}.jsonl": lines({"clip_name": name, "caption": text}) for i,
             (name, text)
                                  in enumerate((("a", "a dog"), ("b", "a cat")))},
             annotations=("parts",), videos=AB, clips=BOTH),
        Case(name="pattern", files={"parts/1.csv": TABLE, "parts/1.log": "x"}, annotations=("parts/*.csv",), videos=AB,
             clips=BOTH),
    ]  # fmt: skip


def _of_programs() -> list[Case]:
    """Return tables as spreadsheets, databases and scripts write them."""
    deep = {"dataset": {"train": {"a": {"sentences": ["a dog"]}}, "test": {"b": {"sentences": ["a cat"]}}}}
    timed = [clip("a.mp4", "a dog", times=(1.5, 3.25))]
    numbered = {"videos": ("101.mp4",), "clips": [clip("101.mp4", "a dog")]}
    return [
        csv_case("escaped_quotes", 'path,text\na.mp4,"a \\"big\\" dog, brown"\nb.mp4,a cat\n',
                 clips=[clip("a.mp4", 'a "big" dog, brown'), BOTH[1]]),
        csv_case("single_quotes", "path,text\n'a.mp4','a dog'\n'b.mp4','a cat'\n"),
        csv_case("markdown", "| path | text |\n|---|:--|\n| a.mp4 | a dog |\n| b.mp4 | a cat |\n"),
        csv_case("comments_between", TABLE.replace("b.mp4", "# checked\nb.mp4")),
        csv_case("numbers_as_floats", "video_id,text\n101.0,a dog\n", **numbered),
        csv_case("zero_bytes", TABLE.replace("a dog", "a dog\0").encode()),
        csv_case("span_in_a_text", "path,text,segment\na.mp4,a dog,1.5-3.25\n", refusal="segment may be the times",
                 remedy=lambda folder: _write(folder / "c.csv", "path,text,start,end\na.mp4,a dog,1.5,3.25\n") and {},
                 clips=timed),
        csv_case("numbered_splits", "path,text,split\na.mp4,a dog,0\nb.mp4,a cat,1\n", refusal="must be a name such as",
                 remedy=lambda folder: _write(folder / "c.csv", "path,text\na.mp4,a dog\nb.mp4,a cat\n") and {}),
        csv_case("percent_names", "path,text\nmy%20a.mp4,a dog\n", videos=("my a.mp4",),
                 clips=[clip("my a.mp4", "a dog")]),
        lines_case("object_of_captions", {"video": "a.mp4", "annotations": {"caption": "a dog"}}),
        Case(name="deep_splits", files={"c.json": json.dumps(deep)}, annotations=("c.json",), videos=AB,
             clips=[BOTH[0], clip("b.mp4", "a cat", split="test")]),
    ]  # fmt: skip


def _damaged() -> list[Case]:
    second = [clip("b.mp4", "a cat")]
    comma = "path,text\na.mp4,a flag, waving\nb.mp4,a cat\n"
    return [
        csv_case("two_columns_of_a_name", "path,text,text\na.mp4,x,a dog\n", refusal="2 columns are called 'text'",
                 remedy=rewritten("c.csv", "path,text,", "path,other,"), clips=DOG),
        csv_case("comma_at_the_end", TABLE.replace("dog\n", "dog,\n")),
        csv_case("no_rows", "path,text\n", refusal="has no rows", clips=DOG,
                 remedy=rewritten("c.csv", "text\n", "text\na.mp4,a dog")),
        csv_case("comma_in_caption", comma, clips=second, rejected={"wrong_row": 1}),
        csv_case("comma_in_first_column", "text,path\na flag, waving,a.mp4\na cat,b.mp4\n", clips=second,
                 rejected={"wrong_row": 1}),
        csv_case("comma_alone", "path,text\na.mp4,a flag, waving\n", refusal="c.csv:2: has 3 fields.*quotes around it",
                 remedy=rewritten("c.csv", "a flag, waving", '"a flag, waving"'), clips=[clip("a.mp4",
                 "a flag, waving")]),
        csv_case("stray_quote", 'path,text\na.mp4,"a dog\nb.mp4,a cat\n', clips=second, rejected={"wrong_row": 1}),
        csv_case("two_stray_quotes", 'path,text\na.mp4,"a dog\nb.mp4,a cat\nc.mp4,"a bird\nd.mp4,x\n', clips=second,
                 rejected={"wrong_row": 2, "missing": 1}),
        csv_case("short_row", "path,text\na.mp4,a dog\nwhimpering\nb.mp4,a cat\n", rejected={"wrong_row": 1}),
        lines_case("bad_line", files={"c.jsonl": lines(ROW) + '{"clip_name": "b", cap\n' + "[1]\n"},
                   rejected={"wrong_row": 2}),
        lines_case("bad_first_line", files={"c.jsonl": '{"clip_name": "b", cap\n' + lines(ROW)},
             rejected={"wrong_row": 1}),
        lines_case("nothing", ROW, {"clip_name": "b", "caption": None}, {"clip_name": "c", "caption": "None"},
                   {"clip_name": "d", "caption": float("nan")}, {"clip_name": "e", "caption": " "}, {"clip_name": "f"},
                   rejected={"no_caption": 5}),
        lines_case("times_wrong", ROW, ROW | {"start": -1, "end": 3}, ROW | {"start": 3, "end": 2},
                   ROW | {"start": "1,5", "end": 3}, rejected={"wrong_row": 3}),
        lines_case("times_comma", ROW | {"start": "1,5", "end": 3}, refusal=r"c\.jsonl:1: start.*such as 1\.5",
                   remedy=rewritten("c.jsonl", "1,5", "1.5"), clips=[clip("a.mp4", "a dog", times=(1.5, 3.0))]),
        lines_case("type_unknown", ROW, ROW | {"clip_name": "b", "type": "film"}, rejected={"wrong_row": 1}),
        lines_case("two_splits", ROW | {"split": "train"}, ROW | {"split": "test"},
             refusal="has split test.*remove one",
                   remedy=rewritten("c.jsonl", lines(ROW | {"split": "test"}), "")),
        lines_case("empty", files={"c.jsonl": "[]"}, refusal="is empty: name a file with captions",
                   remedy=rewritten("c.jsonl", "[]", json.dumps([ROW]))),
    ]  # fmt: skip


def _json() -> list[Case]:
    def case(name: str, value: Any, indent: int | None = None, **more: Any) -> Case:
        text = value if isinstance(value, str) else json.dumps(value, indent=indent)
        return Case(name=name, **{"files": {"c.json": text}, "annotations": ("c.json",), "clips": DOG} | more)

    window = [clip("a.mp4", "a dog", times=(1.5, 3.0))]
    return [
        case("list", [ROW]),
        case("list_indented", [ROW], indent=2),
        case("list_cut", json.dumps([ROW]) + "[", refusal="no JSON list.*mend it",
             remedy=rewritten("c.json", "][", "]")),
        case("lists", [["a.mp4", "a dog"]], columns=("clip=1", "caption=2")),
        case("lists_in_lines", '["a.mp4", "a dog"]\n["b.mp4", "a cat"]\n', columns=("clip=1", "caption=2"), videos=AB,
             clips=BOTH),
        case("object_indented", ROW, indent=2),
        case("objects_indented", json.dumps(ROW, indent=1) + "\n" + json.dumps(ROW | {"clip_name": "b"}, indent=1),
             videos=AB, clips=[*DOG, clip("b.mp4", "a dog")]),
        case("by_clip", {"a.mp4": ["a dog", "it runs"]}, clips=[clip("a.mp4", "a dog", "it runs")]),
        case("by_clip_objects", {"a": {"caption": "a dog", "fps": 4}}),
        case("by_number", {"0": {"video": "a.mp4", "caption": "a dog"}}),
        case("by_clip_rows", {"a": [{"text": "a dog", "start": 1.5, "end": 3}]}, clips=window),
        case("by_split", {"train": [ROW], "validation": [ROW | {"clip_name": "b"}]}, videos=AB,
             clips=[*DOG, clip("b.mp4", "a dog", split="val")]),
        case("by_column", {"path": {"0": "a.mp4"}, "text": {"0": "a dog"}}),
        case("in_data", {"version": "1", "data": [ROW]}),
        case("commas_after_lines", lines(ROW).replace("}\n", "},\n") + lines(ROW | {"clip_name": "b"}), videos=AB,
             clips=[*DOG, clip("b.mp4", "a dog")]),
        case("caption_list", [ROW | {"caption": ["a dog", "it runs"]}], clips=[clip("a.mp4", "a dog", "it runs")]),
        case("caption_list_in_text", [ROW | {"caption": '["a dog", "it runs"]'}],
             clips=[clip("a.mp4", "a dog", "it runs")]),
        case("caption_list_of_python", [ROW | {"caption": "['a dog', \"it's it\"]"}],
             clips=[clip("a.mp4", "a dog", "it's it")]),
        case("number", [{"clip_name": 12, "caption": "a dog"}], videos=("12.mp4",), clips=[clip("12.mp4", "a dog")]),
        case("times_clock", [ROW | {"start": "00:00:01.5", "end": "0:03"}], clips=window),
        case("times_text", [ROW | {"start": "1.5", "end": "3.0"}], clips=window),
        case("times_milliseconds", [ROW | {"start_ms": 1500, "end_ms": 3000}], clips=window),
        case("times_pair", [ROW | {"timestamp": [1.5, 3]}], clips=window),
        case("times_nan", [ROW | {"start": float("nan"), "end": float("nan")}]),
        Case(name="urls_only", files={"u.txt": "https://h.example/a.mp4\n"}, annotations=("u.txt",), clips=DOG,
             refusal="without captions.*--lists", remedy=lambda folder: {
                 "annotations": (str(_write(folder / "d.jsonl", lines(ROW))),), "lists": (f"train={folder}/u.txt",)}),
        case("names_only", ["a.mp4"], refusal="--lists SPLIT=",
             remedy=lambda folder: {"annotations": (str(_write(folder / "d.jsonl", lines(ROW))),),
                                    "lists": (f"train={folder}/c.json",)}),
    ]  # fmt: skip


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _columns() -> list[Case]:
    def says(*columns: str) -> Any:
        return lambda _: {"columns": columns}

    window = [clip("a.mp4", "a dog", times=(1.0, 2.0))]
    return [
        lines_case("text", {"clip_name": "a.mp4", "text": "a dog"}),
        lines_case("video_and_description", {"video_path": "a.mp4", "Description": "a dog"}),
        lines_case("path_and_id", {"id": 7, "path": "a.mp4", "caption": "a dog", "url": "u"}),
        lines_case("start_time", ROW | {"start_time": 1, "end_time": 2}, clips=window),
        lines_case("begin_and_stop", ROW | {"begin": 1, "stop": 2}, clips=window),
        lines_case("frames", ROW | {"start_frame": 8, "end_frame": 16, "s": 1, "e": 2}, clips=window,
                   refusal="start_frame and end_frame may be the times.*--columns start=COLUMN",
                   remedy=says("start=s", "end=e")),
        lines_case("frames_left_out", ROW | {"start_frame": 8, "end_frame": 16}, refusal="--columns start= for whole",
                   remedy=says("start=")),
        lines_case("two_captions", ROW | {"text": "a big dog"}, refusal="--columns caption=caption or --columns",
                   remedy=says("caption=caption")),
        lines_case("other_captions", {"video": "a.mp4", "raw_caption": "x", "refined_caption": "a dog"},
                   refusal="--columns caption=refined_caption", remedy=says("caption=refined_caption")),
        lines_case("equal_columns", {"video": "a.mp4", "vid": "a.mp4", "caption": "a dog", "text": "a dog"}),
        lines_case("two_clips", {"video": "a.mp4", "clip_id": "7", "caption": "a dog"},
                   refusal="--columns clip=video or --columns clip=clip_id", remedy=says("clip=video")),
        lines_case("duration", ROW | {"start": 1, "duration": 1}, refusal="--columns duration=duration", clips=window,
                   remedy=says("duration=duration")),
        lines_case("pair_called_otherwise", ROW | {"ts": [1, 2]}, clips=window),
        lines_case("split_called_otherwise", ROW | {"phase": "Test"}, clips=[clip("a.mp4", "a dog", split="test")]),
        lines_case("split_flag", ROW | {"is_train": False}, refusal="--columns split= to leave it out",
                   remedy=says("split=")),
        lines_case("no_clip", {"footage": "a.mp4", "caption": "a dog"},
             refusal="it has 'footage'.*--columns clip=COLUMN",
                   remedy=says("clip=footage", "caption=caption")),
    ]  # fmt: skip


def _names() -> list[Case]:
    def case(name: str, wanted: str, *videos: str, **more: Any) -> Case:
        rows = {"clip_name": wanted, "caption": "a dog"}
        return lines_case(name, rows, **{"videos": videos, "clips": [clip(videos[0], "a dog")]} | more)

    composed, taken_apart = (unicodedata.normalize(form, "café.mp4") for form in ("NFC", "NFD"))
    rows = [{"clip_name": name, "caption": "a dog"} for name in ("x/a.mp4", "y/a.mp4")]
    return [
        case("suffix", "a", "a.webm"),
        case("suffix_other", "a.avi", "a.mp4"),
        case("suffix_upper", "a.mp4", "a.MP4"),
        case("case", "Video0", "video0.mp4"),
        case("dots", "bP5K_660.0_810.0", "bP5K_660.0_810.0.mp4"),
        case("dots_other_suffix", "v1.2 final", "v1.2 final.mkv"),
        case("unicode", composed, taken_apart),
        case("folder", "a.mp4", "x/y/a.mp4"),
        case("folder_gone", "x/a.mp4", "a.mp4"),
        case("absolute", "/data/old/x/a.mp4", "x/a.mp4"),
        case("windows", "D:\\old\\x\\a.mp4", "x/a.mp4"),
        case("url", "https://host.example/v/a.mp4?token=1", "a.mp4"),
        case("youtube", "https://www.youtube.com/watch?v=abcdefghij1", "abcdefghij1.mp4"),
        case("nearer_folder", "y/a.mp4", "y/a.mkv", "x/a.mkv"),
        case("image_beside", "a.avi", "a.mp4", "a.jpg"),
        case("zeros", "7", "7.mp4", "007.mp4"),
        case("of_two_folders", "a", "x/a.mp4", "y/a.mp4", clips=[], rejected={"missing": 1}),
        lines_case("of_another_clip", *rows, videos=("x/a.mp4",), clips=[clip("x/a.mp4", "a dog")],
                   rejected={"missing": 1}),
        lines_case("two_names", ROW, {"clip_name": "x/a", "caption": "it runs"}, videos=("x/a.mp4",),
                   clips=[clip("x/a.mp4", "a dog", "it runs")]),
        lines_case("two_names_two_splits", ROW, {"clip_name": "x/a", "caption": "it runs", "split": "test"},
                   videos=("x/a.mp4",), refusal="has split test, in an earlier line train",
                   remedy=rewritten("c.jsonl", '"test"', '"train"'), clips=[clip("x/a.mp4", "a dog", "it runs")]),
        lines_case("two_cases", ROW | {"clip_name": "A"}, ROW, rejected={"missing": 1}),
        lines_case("two_suffixes", ROW | {"clip_name": "a"}, videos=("a.webm", "a.mkv"), clips=[],
                   rejected={"missing": 1}),
        lines_case("above", ROW, {"clip_name": "../gone.mp4", "caption": "x"}, rejected={"wrong_row": 1}),
    ]  # fmt: skip


def _splits() -> list[Case]:
    names = dict.fromkeys(("train", "Training"), "train") | dict.fromkeys(("valid", "dev", "validate"), "val")
    names |= dict.fromkeys(("Test", "testing", "eval"), "test")
    rows = [{"file_name": f"{name}.mp4", "text": "a dog", "split": name} for name in names]
    clips = [clip(f"{name}.mp4", "a dog", split=split) for name, split in names.items()]
    by_folder = {f"root/videos/{name}/{name}.txt": "a dog" for name in names}
    return [
        lines_case("split_column", *rows, videos=[f"{name}.mp4" for name in names], clips=clips),
        Case(name="split_folders", files=by_folder, videos=[f"videos/{name}/{name}.mp4" for name in names],
             clips=[clip(f"videos/{name}/{name}.mp4", "a dog", split=split) for name, split in names.items()]),
        lines_case("split_given", ROW, annotations=("valid=c.jsonl",), clips=[clip("a.mp4", "a dog", split="val")]),
        Case(name="split_of_file", files={"msrvtt_test.jsonl": lines(ROW)}, annotations=("msrvtt_test.jsonl",),
             clips=[clip("a.mp4", "a dog", split="test")]),
        lines_case("split_of_path", ROW | {"clip_name": "videos/test/a.mp4"}, videos=("videos/test/a.mp4",),
                   clips=[clip("videos/test/a.mp4", "a dog", split="test")]),
        lines_case("split_of_video", ROW, ROW | {"clip_name": "b"}, videos=("train/a.mp4", "test/b.mp4"),
                   clips=[clip("train/a.mp4", "a dog"), clip("test/b.mp4", "a dog", split="test")]),
        lines_case("split_of_two_folders", ROW, ROW | {"clip_name": "test/train/b.mp4"},
                   videos=("a.mp4", "test/train/b.mp4"), rejected={"wrong_row": 1}),
        lines_case("split_above_the_root", ROW | {"clip_name": "/home/dev/train/a.mp4"}),
        lines_case("split_own", ROW | {"split": "temporal"}, clips=[clip("a.mp4", "a dog", split="temporal")]),
    ]  # fmt: skip


def _lists() -> list[Case]:
    def case(name: str, text: str, **more: Any) -> Case:
        clips = [clip("video0.mp4", "caption of 0"), clip("video1.mp4", "caption of 1")]
        files = {"c.json": json.dumps(MSRVTT), "list": text}
        settings = {
            "files": files,
            "annotations": ("c.json",),
            "lists": ("train=list",),
            "videos": VIDEOS,
            "clips": clips,
        }
        return Case(name=f"list_{name}", **settings | more)

    return [
        case("json", '["video0", "video1"]'),
        case("objects", '[{"video_id": "video0"}, {"video_id": "video1"}]'),
        case("quoted", '"video0"\n"video1"\n'),
        case("labels", "video0 3\nvideo1.mp4 4\n"),
        case("upper", "Video0\r\nVIDEO1.MP4\r\n"),
        case("table", "videoid\tlabel\nvideo0\t3\nvideo1\t4\n"),
        case("paths", "all/video0.mp4\nall/video1.mp4\nall/gone.mp4\n"),
        case(
            "of_others",
            "clip0\nclip1\n",
            refusal="names no clip of the caption files.*'clip0'",
            remedy=rewritten("list", "clip", "video"),
        ),
    ]


def _sidecars() -> list[Case]:
    def case(name: str, files: dict[str, str], *videos: str, **more: Any) -> Case:
        settings = {"files": {f"root/{path}": text for path, text in files.items()}, "clips": DOG, "videos": videos}
        return Case(name=f"sidecar_{name}", **settings | more)

    wrapped = "A long description\nof one video, wrapped\nat 30 characters."
    return [
        case("lines", {"a.txt": "a dog\nit runs\n"}, "a.mp4", clips=[clip("a.mp4", "a dog", "it runs")]),
        case("upper", {"A.TXT": "a dog", "b.JSON": '{"caption": "a cat"}'}, "A.MP4", "b.mp4",
             clips=[clip("A.MP4", "a dog"), clip("b.mp4", "a cat")]),
        case("nan", {"a.txt": "a dog", "b.txt": "nan"}, "a.mp4", "b.mp4", rejected={"no_caption": 1}),
        case("captions_key", {"a.json": '{"captions": ["a dog"]}'}, "a.mp4"),
        case("text_key", {"a.json": '{"text": "a dog"}'}, "a.mp4"),
        case("readme", {"a.txt": "a dog", "README.txt": "x", "LICENSE.txt": "y", "sub/readme.txt": "z"}, "a.mp4"),
        case("gone", {"a.txt": "a dog", "b.txt": "a cat"}, "a.mp4", rejected={"missing": 1}),
        case("other_folder", {"captions/a.txt": "a dog"}, "videos/a.mp4", clips=[clip("videos/a.mp4", "a dog")]),
        case("table_beside", {"c.csv": TABLE}, "a.mp4", "b.mp4", refusal="if c.csv has them: --annotations", clips=BOTH,
             remedy=lambda folder: {"annotations": (f"{folder}/root/c.csv",)}),
        case("gif", {"t_250.txt": "a dog"}, "t_250.gif", clips=[clip("t_250.gif", "a dog")]),
        case("wrapped", {"a.txt": wrapped}, "a.mp4", refusal="read as one sentence.*join them",
             remedy=lambda folder: _write(folder / "root/a.txt", wrapped.replace("\n", " ")) and {},
             clips=[clip("a.mp4", wrapped.replace("\n", " "))]),
        case("prompts", {"prompts.txt": "a dog\na cat\n", "videos.txt": "v/1.mp4\nv/2.mp4\n"}, "v/1.mp4", "v/2.mp4",
             clips=[clip("v/1.mp4", "a dog"), clip("v/2.mp4", "a cat")]),
        case("metadata_csv", {"train/metadata.csv": "file_name,text\n1.mp4,a dog\n", "test/metadata.jsonl":
             lines({"file_name": "2.mp4", "text": "a cat"})}, "train/1.mp4", "test/2.mp4",
             clips=[clip("train/1.mp4", "a dog"), clip("test/2.mp4", "a cat", split="test")]),
    ]  # fmt: skip
