"""Captions in the formats of the field's published data sets, with names and captions of our own."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmarks.support.annotation_case import Case, clip

MSRVTT = {
    "videos": [
        {"video_id": f"video{i}", "split": split, "start time": 137.72, "end time": 149.44}
        for i, split in enumerate(("train", "validate", "test"))
    ],
    "sentences": [{"video_id": f"video{i}", "caption": f"caption of {i}", "sen_id": i} for i in range(3)],
}
MSRVTT_CLIPS = [
    clip(f"video{i}.mp4", f"caption of {i}", split=split) for i, split in enumerate(("train", "val", "test"))
]
VIDEOS = ("video0.mp4", "video1.mp4", "video2.mp4")
ACTIVITYNET = json.dumps(
    {name: {"duration": 9.0, "timestamps": [[0, 3], [3, 9]], "sentences": [" A man sits.", "He stands."]}
     for name in ("v_aaaaaaaaaaa", "v_-bbbbbbbbbb")}
)  # fmt: skip
PARAGRAPH = "A man sits. He stands."
LSMDC = "0001_Film_00.00.51.926-00.00.54.129\t0\t1\t0\t1\tone\n0001_Film_00.01.02.500-00.01.05.000\t1\t2\t3\t4\ttwo\n"


def lines(*rows: Mapping[str, Any]) -> str:
    """Return JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Return a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def tar(files: Mapping[str, str | bytes], mode: str = "w", links: Mapping[str, str] | None = None) -> bytes:
    """Return a tar of files and of hard links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def unpickled(folder: Path) -> dict[str, Any]:
    """Apply the remedy in the error message for a pickle."""
    path = str(folder / "raw-captions.pkl")
    with open(path, "rb") as file, open(f"{path}.json", "w") as out:
        json.dump(pickle.load(file), out)
    return {"annotations": (f"{path}.json",)}


def published() -> list[Case]:
    """Return the cases."""
    return [*_benchmarks(), *_msvd(), *_large_sets(), *_images(), *_shards()]


def _benchmarks() -> list[Case]:  # longer than 50 lines: a table, a case per row
    names, two = ("v_aaaaaaaaaaa", "v_-bbbbbbbbbb"), {"ids": ("train=train_ids.json", "val=val_ids.json")}
    lists = {"train_ids.json": json.dumps([names[0]]), "val_ids.json": json.dumps([names[1]], indent=1)}
    frozen = {
        "images": [{"id": f"video{i}", "file_name": f"video{i}"} for i in range(3)],
        "annotations": [{"image_id": f"video{i}", "caption": f"caption of {i}"} for i in range(3)],
    }
    table = [
        {"video_id": "video0", "caption": "a", "sen_id": 1, "category": 2, "url": "u", "start time": 1.0,
         "end time": 9.0, "split": "train"},
        {"video_id": "video1", "caption": "b", "sen_id": 2, "category": 2, "url": "v", "start time": 1.0,
         "end time": 9.0, "split": "test"},
    ]  # fmt: skip
    return [
        Case(name="msrvtt_json", files={"d.json": json.dumps(MSRVTT)}, annotations=("d.json",), videos=VIDEOS,
             clips=MSRVTT_CLIPS),
        Case(name="msrvtt_folders", files={"d.json": json.dumps(MSRVTT)}, annotations=("d.json",),
             videos=("TrainValVideo/video0.mp4", "TrainValVideo/video1.mp4", "TestVideo/video2.mp4"),
             clips=[clip(f"{folder}/video{i}.mp4", f"caption of {i}", split=split) for i, (folder, split) in enumerate(
                 (("TrainValVideo", "train"), ("TrainValVideo", "val"), ("TestVideo", "test")))]),
        Case(name="msrvtt_frozen", files={"MSR_VTT.json": json.dumps(frozen)}, annotations=("MSR_VTT.json",),
             videos=VIDEOS, clips=[clip(f"video{i}.mp4", f"caption of {i}") for i in range(3)]),
        Case(name="msrvtt_hf_parquet", files={"train.parquet": parquet(table)}, annotations=("train.parquet",),
             videos=VIDEOS, clips=[clip("video0.mp4", "a"), clip("video1.mp4", "b", split="test")]),
        Case(name="msrvtt_table", annotations=("c.csv",), videos=VIDEOS, clips=[clip("video0.mp4", "a")], files={
            "c.csv": "video_id,caption,start time,end time\nvideo0,a,137.7,149.4\n"}),
        Case(name="didemo", annotations=("test=test_data.json",), videos=("1@N01_70_b.mp4",),
             files={"test_data.json": json.dumps([
                 {"video": "1@N01_70_b.mpg", "description": f"moment {i}", "times": [[0, 1]]} for i in range(2)])},
             clips=[clip("1@N01_70_b.mp4", "moment 0 moment 1", split="test")]),
        Case(name="activitynet_mkv", files={"train.json": ACTIVITYNET}, annotations=("train.json",),
             videos=("v_aaaaaaaaaaa.mkv", "v_-bbbbbbbbbb.webm"),
             clips=[clip("v_aaaaaaaaaaa.mkv", PARAGRAPH), clip("v_-bbbbbbbbbb.webm", PARAGRAPH)]),
        Case(name="activitynet_lists", files={"c.json": ACTIVITYNET} | lists, annotations=("c.json",), lists=two["ids"],
             videos=tuple(f"{name}.mp4" for name in names),
             clips=[clip("v_aaaaaaaaaaa.mp4", PARAGRAPH), clip("v_-bbbbbbbbbb.mp4", PARAGRAPH, split="val")]),
        Case(name="activitynet_without_v", files={"c.json": ACTIVITYNET}, annotations=("c.json",),
             videos=("aaaaaaaaaaa.mp4", "-bbbbbbbbbb.mp4"),
             clips=[clip("aaaaaaaaaaa.mp4", PARAGRAPH), clip("-bbbbbbbbbb.mp4", PARAGRAPH)]),
        Case(name="vatex", annotations=("v.json",), videos=("x-V0_000122_000132.mp4",),
             files={"v.json": json.dumps([{"videoID": "x-V0_000122_000132", "enCap": ["one", "two"],
             "chCap": ["一"]}])},
             clips=[clip("x-V0_000122_000132.mp4", "one", "two")]),
        Case(name="vatex_private", annotations=("p.json",), files={
            "p.json": json.dumps([{"videoID": "a"}]), "q.json": json.dumps([{"videoID": "a", "enCap": ["one"]}])},
            refusal="no column has captions.*name the file with the captions",
            remedy=lambda folder: {"annotations": (f"{folder}/q.json",)}, clips=[clip("a.mp4", "one")]),
        Case(name="lsmdc", files={"l.csv": LSMDC}, annotations=("l.csv",),
             videos=("0001_Film/0001_Film_00.00.51.926-00.00.54.129.mp4", "0001_Film_00.01.02.500-00.01.05.000.avi"),
             clips=[clip("0001_Film/0001_Film_00.00.51.926-00.00.54.129.mp4", "one"),
                    clip("0001_Film_00.01.02.500-00.01.05.000.avi", "two")]),
        Case(name="youcook2", annotations=("y.json",), videos=("validation/226/aaaaaaaaaaa.mkv",), files={
            "y.json": json.dumps({"database": {"aaaaaaaaaaa": {"duration": 90, "subset": "validation", "annotations": [
                {"segment": [3, 10], "id": 0, "sentence": "cut it"}, {"segment": [12, 20], "id": 1,
                "sentence": "fry it"}
            ]}}})},
            clips=[clip("validation/226/aaaaaaaaaaa.mkv", "cut it", split="val", times=(3.0, 10.0)),
                   clip("validation/226/aaaaaaaaaaa.mkv", "fry it", split="val", times=(12.0, 20.0))]),
    ]  # fmt: skip


def _msvd() -> list[Case]:
    msvd = "-abcPCjDBc_5_15 a dog runs\n"
    return [
        Case(name="msvd_header", files={"d.txt": f"####\n# Video Description Corpus\n\n####\n{msvd}"},
             annotations=("d.txt",), videos=("-abcPCjDBc_5_15.avi",), clips=[clip("-abcPCjDBc_5_15.avi",
             "a dog runs")]),
        Case(name="msvd_mp4", files={"d.txt": msvd}, annotations=("d.txt",), videos=("-abcPCjDBc_5_15.mp4",),
             clips=[clip("-abcPCjDBc_5_15.mp4", "a dog runs")]),
        Case(name="msvd_pickle", files={"raw-captions.pkl": pickle.dumps({"-abcPCjDBc_5_15": [["a", "dog"], ["it"]]})},
             annotations=("raw-captions.pkl",), videos=("-abcPCjDBc_5_15.avi",), refusal="a pickle.*json.dump",
             remedy=unpickled, clips=[clip("-abcPCjDBc_5_15.avi", "a dog", "it")]),
        Case(name="msvd_pickle_ascii", files={"raw-captions.pkl": pickle.dumps({"b_5_15": [["a", "dog"]]}, protocol=0)},
             annotations=("raw-captions.pkl",), videos=("b_5_15.avi",), refusal="a pickle", remedy=unpickled,
             clips=[clip("b_5_15.avi", "a dog")]),
        Case(name="msvd_corpus", annotations=("video_corpus.csv",), videos=("mv89abcdzh4_33_46.avi",), files={
            "video_corpus.csv": "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
            "mv89abcdzh4,33,46,5,unverified,55,Slovene,Papagaj.\nmv89abcdzh4,33,46,1,clean,9,English,A parrot.\n"},
            clips=[clip("mv89abcdzh4_33_46.avi", "A parrot.")]),
    ]  # fmt: skip


def _large_sets() -> list[Case]:
    webvid = "videoid,contentUrl,duration,page_dir,name\n1,https://x.example/1.mp4,PT17S,p,One\n3,u,PT1S,,Lost\n" \
        "4,u,PT1S,p,nan\n5,u,PT1S,p,None\n6,u,PT1S,,Lost too\n"  # fmt: skip
    speech = {"start": [1.0, 3.5, 8.0], "end": [3.5, 8.0, 11.0], "text": ["we take flour", "put it into", "a bowl now"]}
    spoken = [clip("a.mp4", "we take flour put it into a bowl now", times=(1.0, 11.0))]
    return [
        Case(name="webvid", files={"w_train.csv": webvid}, annotations=("w_train.csv",), videos=("p/1.mp4",),
             clips=[clip("p/1.mp4", "One")], rejected={"no_caption": 2, "wrong_row": 2}),
        Case(name="internvid", annotations=("i.jsonl",), videos=("abcdefghij1.mp4",), files={"i.jsonl": lines(
            {"YoutubeID": "abcdefghij1", "Start_timestamp": "00:00:01.689", "End_timestamp": "00:00:04.085",
             "Caption": "a man speaks", "Aesthetic_Score": 4.2, "UMT_Score": 0.4})},
            clips=[clip("abcdefghij1.mp4", "a man speaks", times=(1.689, 4.085))]),
        Case(name="panda70m", annotations=("p.csv",), videos=("abcdefghij1.mp4",), files={
            "p.csv": 'videoID,url,timestamp,caption,matching_score\nabcdefghij1,https://www.youtube.com/watch?v=x,'
            "\"[['0:00:01.300', '0:00:04.100'], ['0:00:05.0', '0:00:09.0']]\","
             "\"['a cat', \"\"it's\"\"]\",\"[0.4, 0.5]\"\n"},
            clips=[clip("abcdefghij1.mp4", "a cat", times=(1.3, 4.1)), clip("abcdefghij1.mp4", "it's", times=(5.0,
            9.0))]),
        Case(name="howto100m", files={"caption.json": json.dumps({"a": speech})}, annotations=("caption.json",),
             clips=spoken),
        Case(name="howto100m_nan", annotations=("caption.json",), clips=spoken,
             files={"caption.json": json.dumps({"a": {
            "start": [0.5, *speech["start"]], "end": [0.9, *speech["end"]], "text": [float("nan"),
            *speech["text"]]}})}),
        Case(name="howto100m_csv_folder", annotations=("captions",), clips=spoken, files={"captions/a.csv":
            "start,end,text\n1.0,3.5,we take flour\n3.5,8,put it into\n8,11,a bowl now\n"}),
        Case(name="howto100m_videos", annotations=("v.csv",), refusal="no column has captions", files={
            "v.csv": "video_id,category_1,rank,task_id\na,Food,1,123\n", "caption.json": json.dumps({"a": speech})},
            remedy=lambda folder: {"annotations": (f"{folder}/caption.json",)}, clips=spoken),
        Case(name="vindlu", annotations=("v.json",), files={"v.json": json.dumps([
            {"video": "a.mp4", "caption": ["a dog", "it runs"]}])}, clips=[clip("a.mp4", "a dog", "it runs")]),
        Case(name="llava_video", annotations=("c.json",), videos=("x/1.mp4",), files={"c.json": json.dumps([{
            "id": "1", "data_source": "d", "video": "x/1.mp4", "conversations": [
                {"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "A man walks."}]}])},
            clips=[clip("x/1.mp4", "A man walks.")]),
        Case(name="openvid", annotations=("o.csv",), files={"o.csv": "video,caption,aesthetic score,motion score,"
             "temporal consistency score,camera motion,frame,fps,seconds\na.mp4,a dog,5,1,0.9,static,48,24,2\n"},
             clips=[clip("a.mp4", "a dog")]),
        Case(name="hd_vila", annotations=("h.jsonl",), videos=("abcdefghij1.0.mp4",), files={"h.jsonl": lines({
            "video_id": "abcdefghij1", "url": "u", "clip": [{"clip_id": "abcdefghij1.0.mp4", "caption": "a dog",
                                                            "span": ["00:00:17.759", "00:00:23.279"]}]})},
            columns=("clip=clip_id",), clips=[clip("abcdefghij1.0.mp4", "a dog", times=(17.759, 23.279))]),
        Case(name="open_sora", annotations=("c.csv",),
             files={"c.csv": "path,text,num_frames\n/data/x/a.mp4,a dog,51\n"},
             clips=[clip("a.mp4", "a dog")]),
    ]  # fmt: skip


def _images() -> list[Case]:
    return [
        Case(name="coco", annotations=("c.json",), videos=("train2014/COCO_9.jpg",), files={"c.json": json.dumps({
            "info": {"year": 2014}, "licenses": [{"id": 1}], "images": [{"id": 9, "file_name": "COCO_9.jpg"}],
            "annotations": [{"image_id": 9, "id": 1, "caption": "bins"}, {"image_id": 9, "id": 2,
            "caption": "a meal"}]})},
            clips=[clip("train2014/COCO_9.jpg", "bins", "a meal")]),
        Case(name="karpathy", annotations=("k.json",), videos=("val2014/COCO_9.jpg",), files={"k.json": json.dumps({
            "dataset": "coco", "images": [{"filepath": "val2014", "filename": "COCO_9.jpg", "split": "restval",
                                           "sentences": [{"raw": "a bin", "tokens": ["a", "bin"]}]}]})},
            clips=[clip("val2014/COCO_9.jpg", "a bin")]),
        Case(name="visual_genome", annotations=("r.json",), videos=("VG_100K/1.jpg",), files={"r.json": json.dumps([
            {"id": 1, "regions": [{"region_id": 1382, "image_id": 1, "phrase": "the clock is green", "x": 4}]}])},
            clips=[clip("VG_100K/1.jpg", "the clock is green")]),
        Case(name="cc3m", annotations=("t.tsv",), videos=("1.jpg",), clips=[clip("1.jpg", "a very good day")],
             files={"t.tsv": "a very good day\thttp://a.example/x/1.jpg\n"}),
        Case(name="tgif", annotations=("t.tsv",), videos=("tumblr_a_400.gif",),
             clips=[clip("tumblr_a_400.gif", "a man")],
             files={"t.tsv": "https://38.media.example/9f/tumblr_a_400.gif\ta man\n"}),
    ]  # fmt: skip


def _shards() -> list[Case]:
    good = {"a.mp4": b"0", "a.txt": "a dog", "a.json": '{"key": "a"}'}
    first = [clip("0.tar/a.mp4", "a dog")]
    video = {"bytes": b"\0\0\0 ftypisom", "path": "a.mp4"}
    return [
        Case(name="tar_readme", files={"root/0.tar": tar(good | {"README.txt": "words"})}, videos=(), clips=first),
        Case(name="tar_orphan", files={"root/0.tar": tar(good | {"b.txt": "gone"})}, videos=(), clips=first,
             rejected={"missing": 1}),
        Case(name="tar_missing", files={"root/0.tar": tar(good), "c.jsonl": lines(
            {"clip_name": "0.tar/a.mp4", "caption": "a dog"}, {"clip_name": "0.tar/gone.mp4", "caption": "x"})},
            videos=(), annotations=("c.jsonl",), clips=first, rejected={"missing": 1}),
        Case(name="tar_hard_link", files={"root/0.tar": tar(good | {"b.txt": "it runs"}, links={"b.mp4": "a.mp4"})},
             videos=(), clips=[*first, clip("0.tar/b.mp4", "it runs")]),
        Case(name="tar_dotted_members", files={"root/0.tar": tar({f"./{name}": data for name, data in good.items()})},
             videos=(), clips=first),
        Case(name="tar_apple_double", files={"root/0.tar": tar(good | {"._a.mp4": b"1", "__MACOSX/._a.txt": "x"})},
             videos=(), clips=first),
        Case(name="tar_keys", files={"root/0.tar": tar({"a.mp4": b"0", "a.info.json": '{"x": 1}',
                                                        "a.mp4.json": '"a"', "a.caption.txt": "a dog"})},
             videos=(), clips=first),
        Case(name="tar_json_without_caption", files={"root/0.tar": tar(good | {"b.mp4": b"0",
             "b.json": '{"url": "x"}'})},
             videos=(), clips=first, rejected={"no_caption": 1}),
        Case(name="tar_split_in_name", files={f"root/{name}-0.tar": tar({f"{name}.mp4": b"0", f"{name}.txt": "a dog"})
                                              for name in ("train", "valid")}, videos=(),
             clips=[clip("train-0.tar/train.mp4", "a dog"), clip("valid-0.tar/valid.mp4", "a dog", split="val")]),
        Case(name="tar_hidden_gz", files={"root/0.tar": tar(good, "w:gz")}, videos=(), clips=first),
        *(Case(name=f"tar_{kind}", files={f"root/0.tar.{kind}": tar(good, f"w:{kind}")}, videos=(),
               clips=[clip(f"0.tar.{kind}/a.mp4", "a dog")]) for kind in ("gz", "bz2", "xz")),
        Case(name="tar_gz_beside_videos", files={"root/0.tar.gz": tar(good, "w:gz"), "root/b.txt": "a cat"},
             videos=("b.mp4",), clips=[clip("b.mp4", "a cat")]),
        Case(name="hf_parquet_videos", files={"root/0.parquet": parquet([{"video": video, "text": "a dog"}])},
             videos=(),
             clips=[clip("0.parquet/a.mp4", "a dog")]),
        Case(name="video2dataset_parquet", videos=(), files={"root/0.parquet": parquet([
            {"key": "000", "mp4": b"\0\0\0 ftypisom", "txt": "a dog", "url": "x"}])},
            clips=[clip("0.parquet/000.mp4", "a dog")]),
    ]  # fmt: skip
