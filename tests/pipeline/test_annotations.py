from __future__ import annotations

import gzip
import json

import pytest

from pipeline.corpus import text_files
from pipeline.corpus.annotations import read, read_annotations
from pipeline.corpus.caption_formats import detect_format
from pipeline.corpus.caption_readers import Annotation
from pipeline.corpus.media import kind_of
from pipeline.records import Kind


def video(path: str, *captions: str, **more) -> Annotation:
    return Annotation(**{"relative_path": path, "captions": captions, "kind": Kind.VIDEO, "split": "train"} | more)


def lines(*fields: dict) -> str:
    return "".join(json.dumps(one) + "\n" for one in fields)


MSRVTT = {
    "info": {},
    "videos": [
        {"video_id": "video0", "split": "train", "start time": 12.3, "end time": 20.1},
        {"video_id": "video1", "split": "validate"},
        {"video_id": "video2"},
    ],
    "sentences": [
        {"caption": "a dog runs", "video_id": "video0", "sen_id": 1},
        {"caption": "a cat sits", "video_id": "video1", "sen_id": 2},
        {"caption": "the dog is fast", "video_id": "video0", "sen_id": 3},
    ],
}
WEBVID = """videoid,contentUrl,duration,page_dir,name
21179416,u,PT1S,006001_006050,"Aerial, over the
sea"
7,u,x,000001_000050,Rain
"""


def test_json_lines_are_grouped_by_clip(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        lines(
            {"caption": "one", "clip_name": "d/video0", "sen_id": 0, "label": 1},
            {"caption": "pic", "clip_name": "x.jpg", "type": "image"},
            {"caption": " two\u2028 words ", "clip_name": "./d/video0.mp4", "type": "video"},
            {"caption": "part", "clip_name": "d/video0", "start": 0, "end": 3.7, "group": 5, "split": "test"},
            {"caption": None, "clip_name": "y.png"},
        ).replace("\n", "\n\n")
    )
    assert read_annotations([str(path)]) == [
        video("d/video0.mp4", "one", "two words"),
        video("x.jpg", "pic", kind=Kind.IMAGE),
        video("d/video0.mp4", "part", start_seconds=0.0, end_seconds=3.7, group="5", split="test"),
        video("y.png", kind=Kind.IMAGE),
    ]


def test_webvid(tmp_path):
    path = tmp_path / "results_2M_val.csv"
    path.write_text(WEBVID)
    assert read_annotations([f"val={path}"]) == [
        video("006001_006050/21179416.mp4", "Aerial, over the sea", split="val"),
        video("000001_000050/7.mp4", "Rain", split="val"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_msrvtt(tmp_path, indent):
    path = tmp_path / "MSRVTT_data.json"
    path.write_text(json.dumps(MSRVTT, indent=indent))
    assert read_annotations([str(path)], split="test") == [
        video("video0.mp4", "a dog runs", "the dog is fast"),
        video("video1.mp4", "a cat sits", split="val"),  # there: validate
        video("video2.mp4", split="test"),
    ]


def test_sidecars(tmp_path):
    for name in ("a.mp4", "test/b.webm", "c.JPG", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text("first\n\n second  one\n")
    (tmp_path / "test" / "b.txt").write_text("in a folder")
    (tmp_path / "gone.txt").write_text("its video is missing")
    assert read_annotations([str(tmp_path)]) == [
        video("a.mp4", "first", "second one"),
        video("c.JPG", kind=Kind.IMAGE),
        video("test/b.webm", "in a folder", split="test"),
        video("gone.mp4", "its video is missing"),
    ]


def test_several_files_are_one_corpus_with_a_split_each(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines({"caption": "one", "clip_name": "v0"}))
    (tmp_path / "b.jsonl").write_text(
        lines({"caption": "two", "clip_name": "v0"}, {"caption": "x", "clip_name": "v1", "split": "val"})
    )
    (tmp_path / "c.jsonl").write_text(lines({"caption": "y", "clip_name": "v2"}))
    read = read_annotations([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), f"test={tmp_path / 'c.jsonl'}"])
    assert read == [
        video("v0.mp4", "one", "two"),
        video("v1.mp4", "x", split="val"),
        video("v2.mp4", "y", split="test"),
    ]
    with pytest.raises(
        ValueError, match=r"c\.jsonl:1: v2\.mp4 has split train, in an earlier line test; a clip has one split"
    ):
        read_annotations([f"test={tmp_path / 'c.jsonl'}", str(tmp_path / "c.jsonl")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (lines({"caption": "", "clip_name": "v"}), "json_lines"),
        ('{"caption": broken', "json_lines"),
        (json.dumps(MSRVTT), "msrvtt_json"),
        (json.dumps(MSRVTT, indent=1), "msrvtt_json"),
        (WEBVID, "webvid_csv"),
    ],
)
def test_the_format_is_told_by_the_content(text, expected):
    assert detect_format(text, "f").name == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines({"caption": "a", "clip_name": "v"}) + '{"caption": "b", clip}\n', r"f\.txt:2: no JSON"),
        (lines({"caption": "a", "clip_name": "v"}) + "[1]\n", r"f\.txt:2: a line must be an object"),
        (lines({"caption": "a"}), r"f\.txt:1: needs clip_name"),
        (lines({"caption": "a", "clip_name": " "}), r"f\.txt:1: needs clip_name"),
        (lines({"caption": 5, "clip_name": "v"}), r"f\.txt:1: a caption must be text"),
        (lines({"caption": "a", "clip_name": "../v"}), r"clip_name '\.\./v\.mp4' must be a path below"),
        (lines({"caption": "a", "clip_name": "/v"}), r"clip_name '/v\.mp4' must be a path below"),
        (
            lines({"caption": "a", "clip_name": "v", "type": "film"}),
            r"f\.txt:1: type must be one of video, image, got 'film'",
        ),
        (lines({"caption": "a", "clip_name": "v", "start": "1,5"}), r"f\.txt:1: start must be a number of seconds"),
        (
            lines({"caption": "a", "clip_name": "v", "start": 3, "end": 3}),
            r"f\.txt:1: a clip needs start < end, got start 3",
        ),
        ("videoid,name,page_dir\n1,a,b\n2,c,\n", r"f\.txt:3: needs page_dir"),
        ('videoid,name,page_dir\n1,"a\n', r"f\.txt:2: no CSV"),
        (
            json.dumps(MSRVTT | {"sentences": [{"caption": "a", "video_id": "v9"}]}),
            r"sentences\[0\]: its video 'v9' is not among",
        ),
        (
            "clip caption\nv0 a dog\n",
            r"cannot tell the format from 'clip caption'; it may be table, .* --format.* --columns clip=1",
        ),
        (" \n", "is empty: name a file with captions"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "f.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations([str(path)])


def test_a_named_format_is_used_and_another_encoding_is_refused(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("no json at all")
    with pytest.raises(ValueError, match=r"f\.txt:1: no JSON"):
        read_annotations([str(path)], format="json_lines")
    path.write_bytes('{"clip_name": "v", "caption": "Möwe"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_annotations([str(path)])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl does not exist"):
        read_annotations(["test=/nowhere.jsonl"])


def test_kinds_by_suffix():
    assert [kind_of(name) for name in ("a.MP4", "b.jpeg", "c.txt", "d")] == [Kind.VIDEO, Kind.IMAGE, None, None]


def test_lines_of_the_published_code_are_read(real_files):
    folder = real_files / "annotations"
    read = read_annotations([str(folder / "univl_video.jsonl")])
    assert read[0].relative_path == "video9770.mp4"
    assert (read[0].start_seconds, read[0].end_seconds) == (0.0, 3.7)
    image = next(one for one in read_annotations([str(folder / "univl_img.jsonl")]) if one.relative_path == "dog.jpg")
    assert image.kind == Kind.IMAGE
    assert len(image.captions) > 1
    chinese, english = (read_annotations([str(folder / name)]) for name in ("VATEX_CN.jsonl", "msrvtt_train.jsonl"))
    assert [one.relative_path for one in chinese] == [one.relative_path for one in english]
    assert [len(one.captions) for one in english] == [2, 2]
    assert all(not one.captions for one in read_annotations([str(folder / "ucf101_sample.jsonl")]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
@pytest.mark.parametrize(
    "text",
    [
        'clip,caption\r\na,"two\r\nlines, and ""more"""\n\nb,é\n"c",one mark too many"\nd,"open\ne,plain\nf,x,y,\n',
        '{"clip": "a", "caption": "é"}\n\n{"clip": "b", "caption": "x\u2028y"}\nno json\n{"clip": "c", "caption": "z"}',
        WEBVID,
        "a.mp4 a dog\nb.mp4 two cats\n",
    ],
)
def test_a_large_file_is_read_in_pieces_as_a_small_one_at_once(text, encoding, tmp_path, monkeypatch):
    path = tmp_path / "captions"
    path.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    settings = {"columns": {"clip": "1", "caption": "2"}} if text.startswith("a.mp4") else {}
    whole = read([str(path)], **settings)
    assert whole.clips
    for num_bytes in (8, 13, 40):
        monkeypatch.setattr(text_files, "PIECE_BYTES", num_bytes)
        assert read([str(path)], **settings) == whole


def test_a_wrong_letter_in_a_large_file_is_named_by_its_line(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(b"clip,caption\na,one\nb,two\nc,caf\xe9\nd,four\n")
    monkeypatch.setattr(text_files, "PIECE_BYTES", 9)
    with pytest.raises(ValueError, match=r"a\.csv:4: not UTF-8"):
        read([str(tmp_path / "a.csv")])
