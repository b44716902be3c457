"""The wordy corpus: significant words are rare in its captions, and its tests hold as those of the plain one."""

import dataclasses
import hashlib
import itertools
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipeline.synthetic.captions import num_words
from pipeline.synthetic.choices import hard_choice
from pipeline.synthetic.clips import CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.corpus import documents_of, make_corpus
from pipeline.synthetic.difficulty import frames_shown
from pipeline.synthetic.questions import questions_of
from pipeline.synthetic.render import render_image, render_video
from pipeline.synthetic.scenes import COLOURS, combinations_of, poses
from pipeline.synthetic.splits import Richness, held_out_combinations
from pipeline.synthetic.statements import agrees, meaning_of
from pipeline.synthetic.words import SURFACES, VERBS_BY_ACTION, WORDS_BY_SHAPE, WORDS_BY_SIZE, WORDS_BY_TEXTURE
from pipeline.synthetic.wordy import MAX_WORDS
from pipeline.text.significance import CONTENT_POS
from pipeline.text.tagging import lexicon_tagger
from pipeline.text.tokenizer import train_wordpiece

CONFIG = CorpusConfig(
    variant="wordy", num_train_videos=240, num_train_images=40, num_val=10, num_test=60, num_temporal_groups=16
)
SMALL = CorpusConfig(num_train_videos=12, num_train_images=4, num_val=3, num_test=6, num_temporal_groups=2)
NUM_FRAMES = 60
PLAIN_SUMMARY = "efb1f36c6a03ce38844cb38c3b3e3e972af38c3557df2581902e3059d4f653fe"
"""SHA-256 of corpus.json of `SMALL`, as it was before there was another variant."""


@cache
def clips(*splits: str) -> list[SceneClip]:
    return [clip for clip in clips_of(CONFIG) if clip.split in splits]


@cache
def texts(*splits: str) -> list[str]:
    return [caption.text for clip in clips(*splits) for caption in clip.captions]


@cache
def words_about_scenes() -> frozenset[str]:
    tables = (WORDS_BY_SHAPE, WORDS_BY_SIZE, WORDS_BY_TEXTURE)
    words = {word for table in tables for synonyms in table.values() for word in synonyms}
    for verb in itertools.chain.from_iterable(VERBS_BY_ACTION.values()):
        words |= {*verb[:3], *verb.tail.split()}
    return frozenset((words | {*COLOURS, *SURFACES}) - {"to", "the", "each", "other"})


def test_the_plain_corpus_is_as_it_was_before_there_was_another(tmp_path: Path) -> None:
    assert CorpusConfig().variant == "plain"
    make_corpus(SMALL, tmp_path / "plain")
    content = (tmp_path / "plain" / "corpus.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == PLAIN_SUMMARY
    with pytest.raises(ValueError, match="variant is plain there, wordy wanted"):
        make_corpus(dataclasses.replace(SMALL, variant="wordy"), tmp_path / "plain")


def test_the_same_config_gives_the_same_files_and_corpus_json_gives_the_config(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, variant="wordy")
    paths = [tmp_path / "once", tmp_path / "again"]
    for number, path in enumerate(paths, 1):
        assert make_corpus(config, path, num_processes=number)
        assert not make_corpus(config, path)
    once, again = ({p.relative_to(path): p.read_bytes() for p in path.rglob("*.*")} for path in paths)
    assert once == again
    assert not {path.parts[0] for path in once} & {"questions", "multiple_choice", "answers.json"}
    summary = json.loads(once[Path("corpus.json")])
    assert TypeAdapter(CorpusConfig).validate_python(summary["config"]) == config
    drawn = clips_of(config)
    assert sum("distractors" in json.loads(row) for row in once[Path("scenes.jsonl")].splitlines()) == len(drawn)
    assert clips_of(dataclasses.replace(config, num_train_videos=20))[:12] == drawn[:12]


def test_clips_last_ten_seconds_and_only_what_captions_are_about_acts() -> None:
    assert CONFIG.frames_per_clip == NUM_FRAMES == 10 * CONFIG.fps
    for clip in clips("train", "test", "temporal"):
        scene = clip.scene
        assert 3 <= len(scene.things) + len(scene.distractors) <= 4
        together = (*scene.things, *scene.distractors)
        for first, second in itertools.combinations(together, 2):
            assert first.colour != second.colour
            assert first.shape != second.shape
            assert np.hypot(first.x - second.x, first.y - second.y) > first.radius + second.radius
        if scene.events:
            assert {actor for event in scene.events for actor in event.actors} == set(range(len(scene.things)))
        named = {(mention.colour, mention.shape) for caption in clip.captions for mention in caption.statement.mentions}
        assert named <= {(thing.colour, thing.shape) for thing in scene.things}
        assert not {thing.colour for thing in scene.distractors} & set(" ".join(c.text for c in clip.captions).split())


def test_distractors_are_drawn_where_they_are_and_stay() -> None:
    for clip in clips("test")[:6]:
        still = dataclasses.replace(clip.scene, things=(), events=())
        with_them = render_image(still, size_px=64).astype(int)
        without = render_image(dataclasses.replace(still, distractors=()), size_px=64).astype(int)
        changed = np.abs(with_them - without).max(-1) > 30
        inside = np.zeros_like(changed)
        y, x = np.mgrid[:64, :64] + 0.5
        for thing in clip.scene.distractors:
            around = np.hypot(x - thing.x, y - thing.y) < 1.5 * thing.radius + 1
            assert changed[around].sum() > 40
            inside |= around
        assert not changed[~inside].any()
        assert len(poses(clip.scene, 5.0)) == len(clip.scene.things)


@pytest.mark.parametrize("split", ["train", "val", "test", "temporal"])
def test_at_most_one_word_in_five_is_significant(split: str) -> None:
    num_words_by_caption, num_tagged, num_about = [], 0, 0
    for tagged in lexicon_tagger(texts(split)):
        words = [(word, pos) for word, pos in tagged if pos != "PUNCT"]
        significant = [word for word, pos in words if pos in CONTENT_POS]
        num_words_by_caption.append(len(words))
        num_tagged += len(significant)
        num_about += sum(word in words_about_scenes() for word in significant)
    assert min(num_words_by_caption) >= 29
    assert max(num_words_by_caption) <= 47
    assert num_tagged / sum(num_words_by_caption) < 0.2
    assert num_about > 0.9 * num_tagged


def test_a_caption_has_two_sentences_of_the_words_that_its_statement_claims() -> None:
    for clip in clips("train", "val", "test", "temporal"):
        for text, statement in clip.captions:
            assert len(re.findall(r"[^.]+\.( |$)", text)) == 2, text
            assert not re.search(r"[^a-z ,.]|  | [,.]|,,|^,|\ba [aeiou]|\ban [^aeiou]", text), text
            words = re.findall("[a-z]+", text)
            assert sorted(word for word in words if word in COLOURS) == sorted(m.colour for m in statement.mentions)
            for table, facts in (
                (WORDS_BY_SHAPE, [mention.shape for mention in statement.mentions]),
                (WORDS_BY_SIZE, [mention.size for mention in statement.mentions if mention.size]),
                (WORDS_BY_TEXTURE, [statement.texture] if statement.texture else []),
            ):
                found = [key for key, synonyms in table.items() for word in words if word in synonyms]
                assert sorted(found) == sorted(facts), text
            for claim in statement.claims:
                forms = [form for verb in VERBS_BY_ACTION[claim.action] for form in verb[:3]]
                assert any(form in words for form in forms), text
                assert not claim.direction or f"to the {claim.direction}" in text


def test_no_caption_is_cut_at_64_tokens_by_a_trained_vocabulary() -> None:
    tokenizer = train_wordpiece(texts("train"), 1000)
    every = texts("train", "val", "test", "temporal")
    cut, whole = (tokenizer.encode(every, number) for number in (64, 512))
    assert [row.tolist() for row in cut] == [row.tolist() for row in whole]
    assert max(len(row) for row in whole) < 64
    assert max(map(num_words, every)) <= MAX_WORDS


def test_training_shows_no_held_out_combination_and_no_caption_of_a_test() -> None:
    held_out = held_out_combinations(CONFIG.seed, CONFIG.richness)
    assert all(held_out.isdisjoint(combinations_of(clip.scene)) for clip in clips("train"))
    assert all(combinations_of(clip.scene)[0] in held_out for clip in clips("val", "test"))
    assert set(texts("train")).isdisjoint(texts("test", "temporal"))


def test_a_caption_of_a_test_clip_agrees_with_no_other_clip() -> None:
    for split in ("val", "test"):
        meanings = [meaning_of(clip.scene) for clip in clips(split)]
        assert len(set(meanings)) == len(meanings)
        for index, clip in enumerate(clips(split)):
            (caption,) = clip.captions
            assert [other for other, meaning in enumerate(meanings) if agrees(caption.statement, meaning)] == [index]


def test_scenes_that_differ_only_in_distractors_have_one_meaning() -> None:
    scene = clips("test")[0].scene
    bare = dataclasses.replace(scene, distractors=())
    assert meaning_of(scene) == meaning_of(bare)
    assert hash(meaning_of(scene)) == hash(meaning_of(bare))
    assert meaning_of(scene).distractors != meaning_of(bare).distractors


def test_ceilings_are_those_that_the_pixels_give() -> None:
    _, facts = documents_of(CONFIG, clips_of(CONFIG))
    ceilings = facts["ceilings"]
    for direction in ("t2v", "v2t"):
        assert ceilings["oracle"][f"test/{direction}/r1"] == 1.0
        assert ceilings["oracle"][f"temporal/{direction}/group_r1"] == 1.0
        assert ceilings["single_frame"][f"temporal/{direction}/group_r1"] == 0.25
        assert ceilings["bag_of_frames"][f"temporal/{direction}/group_r1"] == 0.5
    assert ceilings["single_frame"]["test/t2v/r1"] < 1.0
    groups: dict[str | None, list[SceneClip]] = {}
    for clip in clips("temporal"):
        groups.setdefault(clip.group, []).append(clip)
    for group in list(groups.values())[:8]:  # every kind of group
        videos = [render_video(clip.scene, num_frames=NUM_FRAMES, size_px=64) for clip in group]
        by_poses = [frames_shown(clip.scene, NUM_FRAMES) for clip in group]
        by_pixels = [frozenset(frame.tobytes() for frame in video) for video in videos]
        assert len({video[NUM_FRAMES // 2].tobytes() for video in videos}) == 1
        assert len({video.tobytes() for video in videos}) == 4
        for bags in (by_poses, by_pixels):
            assert [bags.count(bag) for bag in bags] == [2, 2, 2, 2]


def test_questions_and_choices_about_scenes_with_distractors_are_refused() -> None:
    scene, rng = clips("test")[0].scene, np.random.default_rng(0)
    with pytest.raises(ValueError, match="this one has distractors"):
        questions_of(scene, rng)
    with pytest.raises(ValueError, match="this scene has distractors"):
        hard_choice(rng, scene, CONFIG.richness)


@pytest.mark.parametrize(
    ("richness", "words"),
    [
        (Richness(num_colours=3), "num_colours must be at least 4 for --variant wordy"),
        (Richness(num_shapes=3), "num_shapes must be at least 4 for --variant wordy"),
    ],
)
def test_too_few_looks_for_distractors_are_refused(richness: Richness, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CorpusConfig(variant="wordy", richness=richness)
    assert clips_of(dataclasses.replace(SMALL, variant="wordy", richness=Richness(num_colours=4, num_shapes=4)))
