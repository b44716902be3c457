"""Files of questions and choices, the clips that they mean, and the answers that they have."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.questions import (
    Choice,
    ClipNames,
    Question,
    answer_list,
    group_by_clip,
    known_answers,
    read_choices,
    read_questions,
    unanswerable,
)


def names(*uris: str, root: str = "/corpus") -> ClipNames:
    return ClipNames(pa.table({"clip_id": list(range(len(uris))), "uri": list(uris)}), root)


def asked(clip_name: str, *answers: str) -> Question:
    return Question(question_id=clip_name, clip_name=clip_name, text="what ?", answers=answers)


def test_lines_of_the_published_code_are_read(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    lines = [
        {"caption": "what is it ?", "clip_name": "video7", "label": "dog", "type": "video", "question_type": "what"},
        {"caption": "who ?", "clip_name": "video8", "label": ["man", "boy"], "type": "video"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_questions(str(path))
    assert (first.text, first.clip_name, first.answers, first.kind) == ("what is it ?", "video7", ("dog",), "what")
    assert second.answers == ("man", "boy")
    assert first.question_id != second.question_id


def test_lists_of_the_authors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "test_qa.json"
    record = {"answer": "couch", "category_id": 14, "id": 158581, "question": "what are three people sitting on?"}
    path.write_text(json.dumps([record | {"video_id": 7010}]))
    (question,) = read_questions(str(path))
    assert (question.question_id, question.clip_name, question.answers) == ("158581", "7010", ("couch",))
    assert names("/corpus/videos/video7010.mp4").find("7010") == 0
    assert names("/corpus/vid7010.avi").find("7010") == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "no JSON"),
        ('{"caption": "what ?"}', "lacks 'clip_name'|lacks 'answer'"),
        ('"word"', "an object is needed"),
        ('{"caption": "what ?", "clip_name": "a", "label": null}', "an answer must be a text .* got None"),
        ('{"caption": "what ?", "clip_name": "a", "label": ["b", " "]}', "an answer must be a text"),
        ('{"caption": "what ?", "clip_name": "a", "label": []}', "needs an answer, its list of them is empty"),
        ('{"caption": "", "clip_name": "a", "label": "b"}', "a question must be a text"),
        ('{"caption": "what ?", "clip_name": null, "label": "b"}', "the name of a clip must be a text"),
    ],
)
def test_a_line_that_asks_nothing_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text('{"caption": "what ?", "clip_name": "a", "label": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=said) as error:
        read_questions(str(path))
    assert "qa.jsonl:2" in str(error.value)


def test_a_choice_with_another_number_of_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mc.jsonl"
    path.write_text(json.dumps({"qid": "mc3", "clip_name": "a", "answer": "1", "options": ["x", "y"]}))
    with pytest.raises(ValueError, match="mc3 of a has 2"):
        read_choices(str(path))
    with pytest.raises(ValueError, match="position"):
        Choice(question_id="q", clip_name="a", options=("a", "b", "c", "d", "e"), answer=5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"options": None}, "options must be a list of captions, got 'None'"),
        ({"options": "abcde"}, "options must be a list of captions, got 'abcde'"),
        ({"options": ["a", "b", "c", "d", None]}, "an option must be a text"),
        ({"answer": None}, "the position of an option, got 'None'"),
        ({"answer": 1.5}, "the position of an option, got '1.5'"),
    ],
)
def test_a_choice_of_anything_but_five_captions_is_named(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "mc.jsonl"
    choice = {"qid": "mc3", "clip_name": "a", "answer": "1", "options": ["a", "b", "c", "d", "e"]}
    path.write_text(json.dumps(choice) + "\n" + json.dumps(choice | changed))
    with pytest.raises(ValueError, match=said) as error:
        read_choices(str(path))
    assert "mc.jsonl:2" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n", "asks nothing"),
        (b"[]", "asks nothing"),
        (b'[{"video_id": 1},', "begins as a JSON list and is none"),
        ('{"caption": "où ?"}'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_file_that_asks_nothing_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "qa.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"qa.json.*{said}"):
        read_questions(str(path))


def test_a_text_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    line = {"caption": "what\u2028is it\u0085?", "clip_name": "a", "label": 7}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\r\n")
    (question,) = read_questions(str(path))
    assert (question.text, question.answers) == (line["caption"], ("7",))


def test_a_clip_is_found_by_its_path_its_file_and_its_stem() -> None:
    found = names("/corpus/test/a.mp4", "/corpus/test/b.mp4")
    assert [found.find(name) for name in ("test/a.mp4", "test/a", "a.mp4", "b.avi", "test/b.avi")] == [0, 0, 0, 1, 1]
    assert [found.find(name) for name in ("c", "val/b.mp4", "val/b")] == [None, None, None]  # another split's


def test_a_clip_in_a_packed_file_an_lmdb_or_a_folder_of_frames_is_found_by_its_name() -> None:
    found = names("/c/x.parquet#frames=1-9&name=videos/video7010.mp4", "/c/v.lmdb#key=video8", "/c/video9/", root="/c")
    assert [found.find(name) for name in ("7010", "videos/video7010", "video8.mp4", "video9.avi")] == [0, 0, 1, 2]


def test_a_name_of_two_clips_is_refused_and_only_when_it_is_asked_for() -> None:
    found = names("/corpus/train/a.mp4", "/corpus/test/a.mp4")
    assert found.find("test/a.mp4") == 1
    with pytest.raises(ValueError, match="the name of 2 clips"):
        found.find("a")


def test_questions_about_missing_clips_are_kept_apart() -> None:
    found = group_by_clip([asked("a", "x"), asked("a", "y"), asked("z", "x")], names("/corpus/a.mp4"))
    assert {clip: len(some) for clip, some in found.by_clip.items()} == {0: 2}
    assert [one.clip_name for one in found.missing] == ["z"]
    assert found.num_questions == 2


def test_answers_are_the_most_frequent_ones_and_ties_go_by_the_alphabet() -> None:
    train = [asked("a", "dog"), asked("b", "dog"), asked("c", "cat"), asked("d", "ant"), asked("e", "bee", "dog")]
    answers = answer_list(train, 3)
    assert answers == ("dog", "ant", "bee")
    assert [one.clip_name for one in unanswerable(train, answers)] == ["c"]
    assert known_answers(train[-1], {"dog": 0, "ant": 1, "bee": 2}) == [2, 0]


def test_the_published_choices_are_read(real_files: Path) -> None:
    choices = read_choices(str(real_files / "annotations" / "msrvtt_multi_choice_qa.jsonl"))
    assert [one.clip_name for one in choices] == ["video9770", "video9771"]
    assert choices[0].options[choices[0].answer] == "the boy is trying to fix the problem"


NEXTQA = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n7,9,8,8,why,1,6,CW,a,b,c,d,e\n"
TGIF = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_name\tkey\ntumblr_x\twhat ?\ta\tb\tc\td\te\t2\tT\t4\n"
CHOICE = {"video": "x.mp4", "caption": ["a", "b", "c", "d", "e"]}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("nextqa.csv", NEXTQA, ("7", 1, "CW")),
        ("tgif_action.csv", TGIF, ("tumblr_x", 2, "")),
        ("vindlu.json", json.dumps([CHOICE | {"answer": 3}]), ("x.mp4", 3, "")),
        ("letter.jsonl", json.dumps(CHOICE | {"answer": "B"}), ("x.mp4", 1, "")),
        ("words.jsonl", json.dumps(CHOICE | {"answer": "e"}), ("x.mp4", 4, "")),
    ],
)
def test_choices_of_other_sets_are_read(name: str, text: str, expected: tuple[str, int, str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (choice,) = read_choices(str(tmp_path / name))
    assert (choice.clip_name, choice.answer, choice.kind) == expected
    assert choice.options == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nextoe.csv", 'video,frame_count,width,height,question,answer,qid,type\nx,9,8,8,"who, then",dog,6,CW\n'),
        ("tgif.tsv", "gif_name\tquestion\tanswer\tvid_name\tkey\nx\twho, then\tdog\tT\t6\n"),
        ("vindlu.json", json.dumps([{"video": "x", "question": "who, then", "answer": "dog", "question_id": 6}])),
        ("clipbert.jsonl", json.dumps({"gif_name": "x", "question": "who, then", "answer": "dog", "qid": 6})),
    ],
)
def test_questions_of_other_sets_are_read(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (question,) = read_questions(str(tmp_path / name))
    read = (question.question_id, question.clip_name, question.text, question.answers)
    assert read == ("6", "x", "who, then", ("dog",))
    assert names("/corpus/X.gif").find("x") == 0


def test_questions_whose_answers_lie_in_another_file_are_joined_with_them(tmp_path: Path) -> None:
    path = tmp_path / "val_q.json"
    path.write_text(json.dumps([{"video_name": "1QIU", "question": "who", "question_id": "v_1_6"}]))
    with pytest.raises(ValueError, match=r"NAME_q\.json and NAME_a\.json"):
        read_questions(str(path))
    (tmp_path / "val_a.json").write_text(json.dumps([{"answer": "dog", "type": 3, "question_id": "v_1_6"}]))
    (question,) = read_questions(str(path))
    assert (question.answers, question.kind) == (("dog",), "3")
    assert names("/corpus/v_1QIU.mp4").find(question.clip_name) == 0


def test_msvds_numbers_are_names_by_the_mapping_beside_the_questions(tmp_path: Path) -> None:
    path = tmp_path / "train_qa.json"
    path.write_text(json.dumps([{"answer": "dog", "id": 0, "question": "who", "video_id": 1}]))
    assert [question.clip_name for question in read_questions(str(path))] == ["1"]
    (tmp_path / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\nx_0_9 vid2\n")
    (question,) = read_questions(str(path))
    assert names("/corpus/-4wsuPCjDBc_5_15.avi").find(question.clip_name) == 0


def test_all_wrong_records_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "qa.csv"
    path.write_text("video,question,answer\na,who,dog\nb,who\nc,,dog\n")
    with pytest.raises(ValueError, match=r"qa\.csv:3: has 2 fields(.|\n)*qa\.csv:4: a question must be a text"):
        read_questions(str(path))
