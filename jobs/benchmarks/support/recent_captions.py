"""Captions in the formats of data sets of 2024 to 2026, their converters and other programs, with names and captions of
our own."""

from __future__ import annotations

import gzip
import io
import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.benchmarks.support.annotation_case import Case, clip
from jobs.benchmarks.support.published_captions import lines, parquet, tar
from jobs.benchmarks.support.untidy_captions import AB, BOTH, DOG, ROW, csv_case, lines_case

WINDOW = [clip("a.mp4", "a dog", times=(1.5, 3.25))]
TWO = [clip("a.mp4", "a dog", "it runs")]
CAT = {"clip_name": "b.mp4", "caption": "a cat"}


def recent() -> list[Case]:
    """Return the cases."""
    return [*_timed(), *_spoken_of(), *_containers(), *_found_by_name(), *_split(), *_told()]


def json_case(name: str, value: Any, **more: Any) -> Case:
    """Return a case of one JSON file."""
    text = value if isinstance(value, str) else json.dumps(value)
    return Case(name=name, **{"files": {"c.json": text}, "annotations": ("c.json",), "clips": DOG} | more)


def _says(*columns: str) -> Any:
    return lambda _: {"columns": columns}


def _written(name: str, text: str) -> Any:
    """Return a remedy that rewrites a file."""
    return lambda folder: (folder / name).write_text(text) and {}


def _timed() -> list[Case]:
    """Return rows with times in the video."""
    kitchen = (
        "narration_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration"
    )
    coco = {"info": {}, "videos": [{"id": 0, "file_name": "a.mp4"}], "annotations": [
        {"id": 0, "video_id": 0, "caption": "a dog", "timestamp": [1.5, 3.25]},
        {"id": 1, "video_id": 0, "caption": "it runs", "timestamp": [4, 5]}]}  # fmt: skip
    highlights = {"qid": 1, "query": "a dog", "duration": 150, "vid": "a", "relevant_windows": [[1.5, 3.25]],
                  "saliency_scores": [[3, 4, 4]]}  # fmt: skip
    typed = [{"video": "a", "caption": "a dog", "start": Decimal("1.5"), "end": timedelta(seconds=3.25)}]
    return [
        csv_case("epic_kitchens", f"{kitchen}\nP01_01_0,P01_01,00:00:02.00,00:00:01.50,00:00:03.25,90,195,a dog\n",
                 videos=("P01/P01_01.MP4",), clips=[clip("P01/P01_01.MP4", "a dog", times=(1.5, 3.25))]),
        json_case("coco_of_moments", coco, clips=[*WINDOW, clip("a.mp4", "it runs", times=(4.0, 5.0))]),
        csv_case("koala", "videoID,url,timestamp,caption,Clarity score\n"
                 "a,https://www.youtube.com/watch?v=a,\"['0:00:01.500', '0:00:03.250']\",a dog,0.9\n", clips=WINDOW),
        csv_case("charades_sta", "a 1.5 3.25##a dog\nb 4 5##a cat\n",
                 clips=[*WINDOW, clip("b.mp4", "a cat", times=(4.0, 5.0))]),
        lines_case("times_of_subtitles", ROW | {"start": "00:00:01,500", "end": "00:00:03,250"}, clips=WINDOW),
        Case(name="parquet_of_databases", files={"c.parquet": parquet(typed)}, annotations=("c.parquet",),
             clips=WINDOW),
        lines_case("qvhighlights", highlights, refusal="--columns span=relevant_windows", clips=WINDOW,
                   remedy=_says("span=relevant_windows")),
        lines_case("clip_span", ROW | {"clip_span": [1.5, 3.25]}, refusal="--columns span=clip_span", clips=WINDOW,
                   remedy=_says("span=clip_span")),
        csv_case("arrow_between_times", "video,text,timestamp\na,a dog,\"00:00:01,500 --> 00:00:03,250\"\n",
                 refusal="timestamp may be the times", clips=WINDOW,
                 remedy=_written("c.csv", "video,text,start,end\na,a dog,1.5,3.25\n")),
        csv_case("commas_as_points", "path;text;start;end\na.mp4;a dog;1,5;3,25\n",
                 refusal="must be a number of seconds",
                 remedy=_written("c.csv", "path;text;start;end\na.mp4;a dog;1.5;3.25\n"), clips=WINDOW),
        lines_case("timecode", ROW | {"start": "00:00:01:12", "end": "00:00:03:06"}, clips=WINDOW,
                   refusal="must be a number of seconds", remedy=_written("c.jsonl", lines(ROW | {"start": 1.5,
                   "end": 3.25}))),
    ]  # fmt: skip


def _spoken_of() -> list[Case]:
    """Return captions that are not plain text."""
    shot = {"shot_type": "close-up", "camera_movement": "static", "content": "a dog", "scene_title": "Home"}
    turns = [{"role": "user", "content": "<video>Describe."}, {"role": "assistant", "content": "a dog"}]
    nothing = "path\ttext\na.mp4\ta dog\nb.mp4\t\\N\nc.mp4\t#N/A\nd.mp4\tN/A\ne.mp4\tNA\n"
    languages = {"clip_name": "a.mp4", "caption": {"en": "a dog", "zh": "狗"}}
    foreign = "a \u2028dog \U0001f415 \u202bكلب\u202c"
    return [
        csv_case("captions_of_numpy", "path,text\na.mp4,\"['a dog' 'it runs']\"\nb.mp4,\"['a cat'\n 'it sits']\"\n",
                 clips=[*TWO, clip("b.mp4", "a cat", "it sits")]),
        csv_case("captions_of_json_in_csv", 'path,text\na.mp4,"[""a dog"", ""it runs""]"\n', clips=TWO),
        lines_case("vript", {"clip_id": "a", "caption": shot}),
        lines_case("numbered_captions", {"video": "a.mp4", "caption": {"0": "a dog", "1": "it runs"}}, clips=TWO),
        json_case("messages", [{"messages": turns, "videos": ["a.mp4"]}]),
        csv_case("null_of_databases", nothing, videos=("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"), clips=DOG,
                 rejected={"no_caption": 4}),
        lines_case("line_separators", files={"c.jsonl": json.dumps({"video": "a", "text": foreign},
                   ensure_ascii=False) + "\r\n"}, clips=[clip("a.mp4", " ".join(foreign.split()))]),
        lines_case("captions_by_language", languages, refusal="a caption must be text",
                   remedy=_written("c.jsonl", lines(ROW))),
        lines_case("wrong_values", ROW, ROW | {"caption": 5}, ROW | {"clip_name": None}, ROW | {"clip_name": ["b"]},
                   ROW | {"start": "soon"}, ROW | {"start": 3, "end": 3}, rejected={"wrong_row": 5}),
        json_case("clip_twice_in_an_object", '{"a.mp4": "a dog", "b.mp4": "a cat", "a.mp4": "it runs"}', videos=AB,
                  refusal="'a.mp4'.*twice",
                  remedy=_written("c.json", '{"a.mp4": ["a dog", "it runs"], "b.mp4": "a cat"}'),
                  clips=[*TWO, BOTH[1]]),
    ]  # fmt: skip


def _containers() -> list[Case]:
    """Return files within files, and tables in other forms."""
    gzipped = gzip.compress(lines(ROW).encode()) + gzip.compress(lines(CAT).encode())
    frames = b"".join(pa.Codec("zstd").compress(lines(row).encode(), asbytes=True) for row in (ROW, CAT))
    indented = "\ufeff" + json.dumps([ROW, CAT], indent=2).replace("\n", "\r\n")
    sheet = 'path\ttext\r\na.mp4\t"a\r\ndog"\r\nb.mp4\ta cat\r\n'
    packed = tar({"captions.jsonl": lines(ROW)}, "w:gz")
    return [
        lines_case("gzip_of_two_members", files={"c.jsonl.gz": gzipped}, annotations=("c.jsonl.gz",), videos=AB,
                   clips=BOTH),
        lines_case("zstd_of_two_frames", files={"c.jsonl.zst": frames}, annotations=("c.jsonl.zst",), videos=AB,
                   clips=BOTH),
        json_case("indented_gzip_of_windows", "", files={"c.json.gz": gzip.compress(indented.encode())},
                  annotations=("c.json.gz",), videos=AB, clips=BOTH),
        csv_case("utf16_tabs_with_newlines", sheet.encode("utf-16")),
        csv_case("windows_newlines_in_quotes", "\ufeff" + sheet.replace("\t", ",")),
        json_case("split_of_pandas", {"columns": ["path", "text"], "index": [0, 1], "data": [["a.mp4", "a dog"],
                  ["b.mp4", "a cat"]]}, videos=AB, clips=BOTH),
        Case(name="tar_of_captions", files={"c.tar.gz": packed}, annotations=("c.tar.gz",), clips=DOG,
             refusal="a tar: unpack it", remedy=lambda folder: {
                 "annotations": (str(_unpacked(folder, packed)),)}),
    ]  # fmt: skip


def _unpacked(folder: Path, packed: bytes) -> Path:
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "captions.jsonl"


def _found_by_name() -> list[Case]:
    """Return clips whose names differ from those of their files."""
    dotted = {"x_1.0_2.5.mp4": b"0", "x_1.0_2.5.txt": "a dog", "x_1.0_4.5.mp4": b"0", "x_1.0_4.5.txt": "a cat"}
    urls = "URL,TEXT\nhttps://h.example/v/1.mp4?X-Sig=a%2Fb,one\ns3://bucket/v/2.mp4,two\n" \
        "hf://datasets/me/set/v/3.mp4,three\nfile:///old/v/4.mp4,four\n"  # fmt: skip
    tube = ("https://youtu.be/aaaaaaaaaa1?t=3", "https://www.youtube.com/shorts/aaaaaaaaaa2",
            "https://m.youtube.com/watch?v=aaaaaaaaaa3&t=10s",
            "https://www.youtube.com/embed/aaaaaaaaaa4?start=3")  # fmt: skip
    tacos = {"s13-d21.avi": {"timestamps": [[1, 2], [2, 3]], "sentences": ["He cuts.", "He eats."], "fps": 29.4,
                             "num_frames": 100}}  # fmt: skip
    return [
        json_case("vidgen", [{"vid": "q-_7-Scene-0001", "caption": "a dog"}], videos=("x/q-_7-Scene-0001.mp4",),
                  clips=[clip("x/q-_7-Scene-0001.mp4", "a dog")]),
        Case(name="tar_names_with_dots", files={"root/0.tar": tar(dotted)}, videos=(),
             clips=[clip("0.tar/x_1.0_2.5.mp4", "a dog"), clip("0.tar/x_1.0_4.5.mp4", "a cat")]),
        csv_case("urls_of_four_kinds", urls, videos=[f"v/{i}.mp4" for i in range(1, 5)],
                 clips=[clip(f"v/{i}.mp4", text) for i, text in enumerate(("one", "two", "three", "four"), 1)]),
        lines_case("youtube_of_four_kinds", *({"url": url, "caption": "a dog"} for url in tube),
                   videos=[f"aaaaaaaaaa{i}.mp4" for i in range(1, 5)],
                   clips=[clip(f"aaaaaaaaaa{i}.mp4", "a dog") for i in range(1, 5)]),
        json_case("tacos", tacos, videos=("s13-d21.avi",), clips=[clip("s13-d21.avi", "He cuts. He eats.")]),
        Case(name="metadata_parquet", videos=("validation/x/1.mp4",), files={"root/validation/metadata.parquet":
             parquet([{"video_file_name": "x/1.mp4", "text": "a dog"}])},
             clips=[clip("validation/x/1.mp4", "a dog", split="val")]),
        Case(name="metadata_of_windows", videos=("train/1.mp4", "test/2.mp4"), files={"root/metadata.csv":
             "\ufefffile_name,text\r\ntrain\\1.mp4,a dog\r\ntest\\2.mp4,a cat\r\n"},
             clips=[clip("train/1.mp4", "a dog"), clip("test/2.mp4", "a cat", split="test")]),
    ]  # fmt: skip


def _split() -> list[Case]:
    """Return cases of splits."""
    names = {"TRAIN": "train", " dev ": "val", "Testing": "test", "trainval": "trainval", "": "train"}
    rows = [{"video": f"{i}", "caption": "a dog", "split": name} for i, name in enumerate(names)]
    converted = {f"hub/default/{name}/0000.parquet": parquet([{"video": name, "caption": "a dog"}])
                 for name in ("train", "validation", "test")}  # fmt: skip
    sides = {f"{name}/x.mp4": b"0" for name in ("train", "test")} | {f"{name}/x.txt": "a dog" for name in ("train",
             "test")}  # fmt: skip
    return [
        lines_case("splits_of_many_hands", *rows, videos=[f"{i}.mp4" for i in range(len(names))],
                   clips=[clip(f"{i}.mp4", "a dog", split=split) for i, split in enumerate(names.values())]),
        Case(name="hub_conversion", files=converted, annotations=("hub",),
             videos=("train.mp4", "validation.mp4", "test.mp4"), clips=[clip(f"{name}.mp4", "a dog", split=split)
             for name, split in (("train", "train"), ("validation", "val"), ("test", "test"))]),
        Case(name="folder_of_the_file", files={f"{name}/data.jsonl": lines({"video": name, "caption": "a dog"})
             for name in ("train", "test")}, annotations=("train/data.jsonl", "test/data.jsonl"),
             videos=("train.mp4", "test.mp4"), clips=[clip("train.mp4", "a dog"), clip("test.mp4", "a dog",
             split="test")]),
        Case(name="tar_of_split_folders", files={"root/0.tar": tar(sides)}, videos=(),
             clips=[clip("0.tar/train/x.mp4", "a dog"), clip("0.tar/test/x.mp4", "a dog", split="test")]),
        lines_case("list_with_a_split_column", files={"c.jsonl": lines(ROW, CAT), "all.csv":
                   "video_id,split\na,train\nb,test\n"}, lists=("train=all.csv",), videos=AB),
    ]  # fmt: skip


def _told() -> list[Case]:
    """Return cases of columns whose meaning only the user knows."""
    modes = {"clip_id": "a", "vision_cap": ["x"], "audio_cap": ["y"], "vast_cap": ["a dog"]}
    action = "label,youtube_id,time_start,time_end,split\na dog,a,1.5,3.25,train\n"
    return [
        csv_case("videoufo", "ID,Topic,Brief Caption,Detailed Caption\na,Pets,a dog,a brown dog\n", clips=DOG,
                 refusal="--columns 'caption=Brief Caption'", remedy=_says("caption=Brief Caption")),
        lines_case("vast", modes, refusal="--columns caption=vast_cap", remedy=_says("caption=vast_cap")),
        json_case("something_something", [{"id": "a", "label": "a dog", "template": "a [thing]"}],
                  refusal="it has 'label'.*--columns caption=COLUMN", remedy=_says("caption=label")),
        csv_case("kinetics", action, refusal="--columns caption=COLUMN", remedy=_says("caption=label"), clips=WINDOW),
    ]  # fmt: skip
