"""The corpus on disk: complete or absent, the same from the same seed, readable by others."""

import dataclasses
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jobs.corpus.generation import MakeCorpus, progress_printer, run
from pipeline.synthetic.clips import CorpusConfig, clips_of
from pipeline.synthetic.corpus import make_corpus
from pipeline.synthetic.render import render_image, render_video

CONFIG = CorpusConfig(num_train_videos=12, num_train_images=4, num_val=3, num_test=6, num_temporal_groups=2)


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpora") / "embedded"
    assert make_corpus(CONFIG, path)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def decode(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_same_config_gives_the_same_files_however_many_processes_make_them(corpus_path: Path, tmp_path: Path):
    assert make_corpus(CONFIG, tmp_path / "again", num_processes=2)
    assert contents(tmp_path / "again") == contents(corpus_path)
    make_corpus(dataclasses.replace(CONFIG, seed=1), tmp_path / "other")
    hashes = {
        json.loads((path / "corpus.json").read_text())["content_hash"] for path in (corpus_path, tmp_path / "other")
    }
    assert len(hashes) == 2


def test_a_finished_corpus_is_left_alone_and_one_of_another_config_is_refused(corpus_path: Path):
    before = contents(corpus_path)
    assert not make_corpus(CONFIG, corpus_path)
    with pytest.raises(ValueError, match="num_test is 6 there, 7 wanted"):
        make_corpus(dataclasses.replace(CONFIG, num_test=7), corpus_path)
    assert contents(corpus_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="exists and is no corpus of ours"):
        make_corpus(CONFIG, tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"keep me"}


def test_nothing_is_left_of_a_corpus_that_was_broken_off(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(CONFIG, tmp_path / "embedded", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_annotations_are_one_line_per_caption_of_files_that_exist(corpus_path: Path):
    lines = {split: rows(corpus_path / f"annotations/{split}.jsonl") for split in ("train", "val", "test", "temporal")}
    assert {split: len(of) for split, of in lines.items()} == {"train": 48, "val": 3, "test": 6, "temporal": 8}
    for split, of_split in lines.items():
        assert [row["sen_id"] for row in of_split] == list(range(len(of_split)))
        for row in of_split:
            assert set(row) == {"caption", "clip_name", "sen_id", "type", "split", "group"}
            assert row["split"] == split
            assert (row["group"] is not None) == (split == "temporal")
            assert row["clip_name"].endswith({"video": ".mp4", "image": ".jpg"}[row["type"]])
    named = {row["clip_name"] for of_split in lines.values() for row in of_split}
    assert named == {name for name in contents(corpus_path) if name.endswith((".mp4", ".jpg"))}
    assert sum(row["type"] == "image" for row in lines["train"]) == 12


def test_scenes_questions_and_choices_are_of_the_annotated_clips(corpus_path: Path):
    scenes = rows(corpus_path / "scenes.jsonl")
    assert len({row["clip_name"] for row in scenes}) == len(scenes) == 12 + 4 + 3 + 6 + 8
    answers = json.loads((corpus_path / "answers.json").read_text())
    for split in ("train", "val", "test", "temporal"):
        videos = {row["clip_name"] for row in scenes if row["split"] == split and row["type"] == "video"}
        questions = rows(corpus_path / f"questions/{split}.jsonl")
        assert {row["clip_name"] for row in questions} == videos
        assert set(questions[0]) == {"clip_name", "caption", "label", "type", "question_type"}
        assert split != "train" or {row["label"] for row in questions} == set(answers)
    test = rows(corpus_path / "multiple_choice/test.jsonl")
    captions = {row["clip_name"]: row["caption"] for row in rows(corpus_path / "annotations/test.jsonl")}
    for row in test:
        assert set(row) == {"qid", "clip_name", "title", "answer", "options", "difficulty"}
        assert len(set(row["options"])) == 5
        assert row["difficulty"] == "hard" or row["options"][int(row["answer"])] == captions[row["clip_name"]]
    assert [row["difficulty"] for row in test] == ["random", "hard"] * 6
    train = rows(corpus_path / "multiple_choice/train.jsonl")
    assert [row["difficulty"] for row in train] == ["hard"] * 5 * 12
    assert len({row["options"][int(row["answer"])] for row in train}) > 12  # said in several ways


def test_files_show_what_was_drawn(corpus_path: Path):
    for clip in clips_of(CONFIG)[::2]:
        content = (corpus_path / clip.clip_name).read_bytes()
        if clip.kind == "video":
            drawn, read = render_video(clip.scene, num_frames=12, size_px=64), decode(content)
        else:
            drawn, read = render_image(clip.scene, size_px=64), np.asarray(Image.open(io.BytesIO(content)))
        assert read.shape == drawn.shape
        assert np.abs(read.astype(float) - drawn).mean() < 12, clip.clip_name


def test_the_summary_states_sizes_and_ceilings(corpus_path: Path):
    summary = json.loads((corpus_path / "corpus.json").read_text())
    assert {"variant": "plain", **summary["config"]} == dataclasses.asdict(CONFIG)
    assert summary["sizes"]["clips"] == {
        "train/video": 12, "train/image": 4, "val/video": 3, "test/video": 6, "temporal/video": 8,
    }  # fmt: skip
    ceilings = summary["ceilings"]
    assert ceilings["oracle"]["test/t2v/r1"] == 1.0
    assert ceilings["single_frame"]["temporal/t2v/group_r1"] == 0.25
    assert ceilings["bag_of_frames"]["temporal/v2t/group_r1"] == 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_test": 0}, "num_test must be at least 1, got 0"),
        ({"size_px": 63}, "size_px must be even and at least 32, got 63"),
        ({"num_frames": 4}, "num_frames must be at least 8"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_configs_are_refused(values: dict, words: str):
    with pytest.raises(ValueError, match=words):
        CorpusConfig(**values)


def test_the_job_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    job = MakeCorpus(out=tmp_path / "embedded", corpus=CONFIG, processes=1)
    run(job)
    run(job)
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"corpus: made: {job.out}", f"corpus: already there: {job.out}"]
    assert "33/33 clips" in said.err
    with pytest.raises(ValueError, match="processes must be at least 1"):
        MakeCorpus(processes=0)


def test_progress_is_not_printed_for_every_clip(capsys: pytest.CaptureFixture[str]):
    show = progress_printer()
    for done in range(1, 101):
        show(done, 100)
    assert len(capsys.readouterr().err.splitlines()) <= 2
