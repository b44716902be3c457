"""Write the corpus as files: encoded clips, annotations, scenes, questions, choices, and score ceilings."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.decode.codec import encode_video
from pipeline.synthetic.choices import Choice, hard_choice, random_choice
from pipeline.synthetic.clips import SPLITS, CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.difficulty import corpus_ceilings
from pipeline.synthetic.questions import Question, closed_answers, questions_of
from pipeline.synthetic.render import render_image, render_video
from pipeline.synthetic.splits import held_out_combinations, rng_for, uncovered_pairs

SUMMARY_NAME = "corpus.json"
FORMAT_VERSION = 3
"""Increment it whenever the same config would give different files."""

NUM_TRAINING_CHOICES = 5
"""Hard choices about each training clip: with a single one, the model would memorise its true caption."""

Progress = Callable[[int, int], None]
"""Called with (number of clips written, total number of clips)."""
Row = dict[str, Any]


def make_corpus(
    config: CorpusConfig, out_path: Path, *, num_processes: int = 1, progress: Progress | None = None
) -> bool:
    """Write the corpus to `out_path` unless it is already there; return whether it was written.

    A complete corpus with the same config is left alone; ValueError if anything else is there.
    """
    if _is_finished(config, out_path):
        return False
    partial_path = out_path.with_name(f".{out_path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial_path, ignore_errors=True)
    try:
        _write(config, partial_path, num_processes, progress)
        partial_path.rename(out_path)
    finally:
        shutil.rmtree(partial_path, ignore_errors=True)
    return True


def _is_finished(config: CorpusConfig, out_path: Path) -> bool:
    summary_path = out_path / SUMMARY_NAME
    if not summary_path.is_file():
        if out_path.exists() and (not out_path.is_dir() or any(out_path.iterdir())):
            raise ValueError(f"{out_path} exists and is no corpus of ours: name another folder or remove it")
        return False
    summary = json.loads(summary_path.read_text())
    expected = {"format_version": FORMAT_VERSION, **_flat(dataclasses.asdict(config))}
    known = {"variant": "plain"} | summary.get("config", {})
    present = {"format_version": summary.get("format_version"), **_flat(known)}
    if expected == present:
        return True
    different = sorted(key for key in expected | present if expected.get(key) != present.get(key))
    listed = ", ".join(f"{key} is {present.get(key)} there, {expected.get(key)} wanted" for key in different)
    raise ValueError(f"{out_path} holds a corpus of another config ({listed}): name another folder or remove it")


def _settings(config: CorpusConfig) -> Row:
    """Return the config for corpus.json, which of a plain corpus stays as it was before there was another variant."""
    settings = dataclasses.asdict(config)
    if not config.is_wordy:
        del settings["variant"]
    return settings


def _flat(tree: Row, prefix: str = "") -> Row:
    flat: Row = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _write(config: CorpusConfig, root: Path, num_processes: int, progress: Progress | None) -> None:
    clips = clips_of(config)
    for folder in {str(Path(clip.clip_name).parent) for clip in clips}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    hashes: list[str] = []
    for digest in _map(partial(_write_clip, config, root), clips, num_processes):
        hashes.append(digest)
        if progress is not None:
            progress(len(hashes), len(clips))
    documents, facts = documents_of(config, clips)
    for name, content in documents.items():
        hashes.append(hashlib.sha256(content).hexdigest())
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    summary = {
        "format_version": FORMAT_VERSION,
        "content_hash": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "config": _settings(config),
        **facts,
    }
    (root / SUMMARY_NAME).write_text(json.dumps(summary, indent=2) + "\n")


def documents_of(config: CorpusConfig, clips: Sequence[SceneClip]) -> tuple[dict[str, bytes], Row]:
    """Return the text files of a corpus by path, and its sizes and ceilings; of a wordy one without questions."""
    videos = {split: [clip for clip in clips if clip.split == split and clip.kind == "video"] for split in SPLITS}
    asked_about = {split: [] if config.is_wordy else of_split for split, of_split in videos.items()}
    questions = {split: _questions(config, split, asked_about[split]) for split in SPLITS}
    choices = {split: _choices(config, split, asked_about[split]) for split in SPLITS}
    answers = closed_answers(question for asked in questions["train"].values() for question in asked)
    rows: dict[str, list[Row]] = {"scenes.jsonl": [_truth(clip) for clip in clips]}
    for split in SPLITS:
        rows[f"annotations/{split}.jsonl"] = _annotations(clips, split)
        if not config.is_wordy:
            rows[f"questions/{split}.jsonl"] = _question_rows(questions[split])
            rows[f"multiple_choice/{split}.jsonl"] = _choice_rows(choices[split], split)
    documents = {name: "".join(json.dumps(row, sort_keys=True) + "\n" for row in of) for name, of in rows.items()}
    if not config.is_wordy:
        documents["answers.json"] = json.dumps(answers, indent=2) + "\n"
    facts = {
        "sizes": {
            "clips": dict(Counter(f"{clip.split}/{clip.kind}" for clip in clips)),
            "rows": {name: len(of) for name, of in rows.items()},
            "answers": len(answers),
            "pairs_that_training_never_shows": len(
                uncovered_pairs(config.richness, [c.scene for c in videos["train"]])
            ),
        },
        "ceilings": corpus_ceilings(clips, questions, choices, answers=answers, num_frames=config.frames_per_clip),
    }
    return {name: text.encode() for name, text in documents.items()}, facts


def _questions(config: CorpusConfig, split: str, clips: Sequence[SceneClip]) -> dict[str, list[Question]]:
    rngs = [rng_for(config.seed, "question", SPLITS.index(split), index) for index in range(len(clips))]
    return {clip.clip_name: questions_of(clip.scene, rng) for clip, rng in zip(clips, rngs, strict=True)}


def _choices(config: CorpusConfig, split: str, clips: Sequence[SceneClip]) -> dict[str, list[Choice]]:
    """Draw a random and a hard choice about each clip; for training only hard ones, since random options are easy for a
    pre-trained model."""
    choices: dict[str, list[Choice]] = {}
    others = [clip.captions[0] for clip in clips]
    is_train = split == "train"
    held_out = held_out_combinations(config.seed, config.richness) if is_train else frozenset()
    for index, clip in enumerate(clips):
        rng = rng_for(config.seed, "choice", SPLITS.index(split), index)
        drawn = [] if is_train else [random_choice(rng, clip.scene, clip.captions[0], others)]
        for _ in range(NUM_TRAINING_CHOICES if is_train else 1):
            drawn.append(hard_choice(rng, clip.scene, config.richness, held_out))
        choices[clip.clip_name] = [choice for choice in drawn if choice is not None]
    return choices


def _map(work: Callable[[SceneClip], str], clips: Sequence[SceneClip], num_processes: int) -> Iterator[str]:
    if num_processes <= 1:
        yield from map(work, clips)
        return
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, clips, chunksize=20)


def _write_clip(config: CorpusConfig, root: Path, clip: SceneClip) -> str:
    """Render, encode and write one clip; return the hash of its frames before encoding."""
    if clip.kind == "video":
        frames = render_video(clip.scene, num_frames=config.frames_per_clip, size_px=config.size_px)
        content = encode_video(frames, fps=config.fps)
    else:
        frames = render_image(clip.scene, size_px=config.size_px)
        buffer = io.BytesIO()
        Image.fromarray(frames).save(buffer, format="JPEG", quality=92)
        content = buffer.getvalue()
    (root / clip.clip_name).write_bytes(content)
    return hashlib.sha256(frames.tobytes()).hexdigest()


def _annotations(clips: Sequence[SceneClip], split: str) -> list[Row]:
    rows = [(clip, caption) for clip in clips if clip.split == split for caption in clip.captions]
    return [
        {
            "caption": caption.text,
            "clip_name": clip.clip_name,
            "sen_id": index,
            "type": clip.kind,
            "split": split,
            "group": clip.group,
        }
        for index, (clip, caption) in enumerate(rows)
    ]


def _question_rows(questions: dict[str, list[Question]]) -> list[Row]:
    return [
        {
            "clip_name": clip_name,
            "caption": question.text,
            "label": question.answer,
            "type": "video",
            "question_type": question.question_type,
        }
        for clip_name, asked in questions.items()
        for question in asked
    ]


def _choice_rows(choices: dict[str, list[Choice]], split: str) -> list[Row]:
    rows = [(clip_name, choice) for clip_name, of_clip in choices.items() for choice in of_clip]
    return [
        {
            "qid": f"mc{index}",
            "clip_name": clip_name,
            "title": f"{split}{index}",
            "answer": str(choice.answer),
            "options": [option.text for option in choice.options],
            "difficulty": choice.difficulty,
        }
        for index, (clip_name, choice) in enumerate(rows)
    ]


def _truth(clip: SceneClip) -> Row:
    scene = dataclasses.asdict(clip.scene)
    if not clip.scene.distractors:
        del scene["distractors"]
    return {"clip_name": clip.clip_name, "type": clip.kind, "split": clip.split, "group": clip.group, **scene}
