from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.corpus.annotations import read_annotations
from pipeline.corpus.caption_formats import detect_format
from pipeline.corpus.caption_readers import Annotation
from pipeline.corpus.lists import read_lists
from pipeline.records import Kind


def clip(path: str, *captions: str, split: str = "train") -> Annotation:
    return Annotation(relative_path=path, captions=captions, kind=Kind.VIDEO, split=split)


DIDEMO = [
    {"video": "12@N00_1_a.avi", "description": "a dog runs.", "times": [[0, 0]]},
    {"video": "34@N00_2_b.mov", "description": "rain", "times": [[1, 1]]},
    {"video": "12@N00_1_a.avi", "description": "it barks", "times": [[2, 3]]},
]
ACTIVITYNET = {"v_x": {"duration": 9.0, "timestamps": [[0, 3], [3, 9]], "sentences": ["A man sits.", " He stands."]}}
VATEX = [{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["one", "two"], "chCap": ["一"]}]
LSMDC = "1004_Juno_00.00.32.167-00.00.37.564\t1\t2\t3\t4\tSomeone looks up.\n"
MSVD = "-4wsuPCjDBc_5_15 a squirrel eats a peanut\n-4wsuPCjDBc_5_15 a chipmunk eats\nx_1_2 a dog\n"
MSRVTT_CSV = 'key,vid_key,video_id,sentence\nret0,msr9770,video9770,"a person is connecting something, slowly"\n'
PUBLISHED = {
    "didemo": (
        json.dumps(DIDEMO),
        [clip("12@N00_1_a.avi", "a dog runs. it barks"), clip("34@N00_2_b.mov", "rain")],
    ),
    "activitynet": (json.dumps(ACTIVITYNET), [clip("v_x.mp4", "A man sits. He stands.")]),
    "vatex": (json.dumps(VATEX), [clip("Ptf_2VRj-V0_000122_000132.mp4", "one", "two")]),
    "lsmdc": (LSMDC, [clip("1004_Juno/1004_Juno_00.00.32.167-00.00.37.564.avi", "Someone looks up.")]),
    "msvd": (
        MSVD,
        [clip("-4wsuPCjDBc_5_15.avi", "a squirrel eats a peanut", "a chipmunk eats"), clip("x_1_2.avi", "a dog")],
    ),
    "msrvtt_csv": (
        MSRVTT_CSV,
        [clip("video9770.mp4", "a person is connecting something, slowly")],
    ),
}


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_benchmarks_own_file_is_told_and_read(format: str, tmp_path: Path) -> None:
    text, wanted = PUBLISHED[format]
    path = tmp_path / "captions"
    path.write_text(text)
    assert detect_format(text, "captions").name == format
    assert read_annotations([str(path)]) == wanted


@pytest.mark.parametrize(
    ("format", "text", "match"),
    [
        ("didemo", '[{"video": "a.avi"}]', r"\[0\]: needs description"),
        ("activitynet", '{"v_x": {"sentences": "one"}}', "v_x: needs sentences, a list"),
        ("vatex", '[{"videoID": "a"}]', "needs enCap"),
        ("lsmdc", "clip\tsentence", "captions:1: needs 6 columns apart by tabs, got 2"),
        ("msvd", "x_1_2 a dog\nnonsense", "captions:2: needs the clip's name and a sentence"),
        ("msrvtt_csv", "video_id,sentence\n,a dog", "captions:2: needs video_id"),
        (None, '[{"name": "a"}]', "no column has captions"),
    ],
)
def test_what_is_wrong_in_it_is_named(format: str | None, text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "captions"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_annotations([str(path)], format=format)


def test_lists_say_which_clips_of_one_file_are_in_which_split(tmp_path: Path) -> None:
    captions, train, test = tmp_path / "captions.txt", tmp_path / "train.txt", tmp_path / "test.csv"
    captions.write_text(MSVD + "y_3_4 a cat\n")
    train.write_text("-4wsuPCjDBc_5_15\n")
    test.write_text("key,video_id\n0,x_1_2.avi\n")
    found = read_annotations([str(captions)], lists=[f"train={train}", f"test={test}"])
    assert [(one.relative_path, one.split) for one in found] == [
        ("-4wsuPCjDBc_5_15.avi", "train"),
        ("x_1_2.avi", "test"),
    ]
    with pytest.raises(ValueError, match="x_1_2 is in the split test too"):
        read_lists([f"test={test}", f"val={test}"])
    with pytest.raises(ValueError, match="SPLIT=PATH"):
        read_lists([str(test)])
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(ValueError, match="names no clip"):
        read_lists([f"test={empty}"])
