"""Questions, choices and ceilings, each checked against poses or pixels instead of the code that made it."""

import itertools
from functools import cache

import numpy as np
import pytest

from pipeline.synthetic.choices import Choice, hard_choice, random_choice
from pipeline.synthetic.clips import CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.difficulty import (
    bag_of_frames_ceilings,
    choice_ceilings,
    expected_recall,
    retrieval_ceilings,
)
from pipeline.synthetic.questions import Question, closed_answers, questions_of, single_frame_accuracy
from pipeline.synthetic.render import render_video
from pipeline.synthetic.scenes import Pose, Scene, poses
from pipeline.synthetic.splits import Richness, held_out_combinations, train_scenes
from pipeline.synthetic.statements import Statement, agrees, agrees_with_frame, meaning_of
from pipeline.synthetic.words import WORDS_BY_SHAPE

CONFIG = CorpusConfig(num_train_videos=250, num_train_images=4, num_val=4, num_test=60, num_temporal_groups=16)


@cache
def clips(split: str) -> list[SceneClip]:
    return [clip for clip in clips_of(CONFIG) if clip.split == split and clip.kind == "video"]


@cache
def asked() -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(0)
    scenes = [scene for clip in (*clips("train"), *clips("temporal")) for scene in [clip.scene]]
    return [(scene, question) for scene in scenes for question in questions_of(scene, rng)]


def shape_asked_about(scene: Scene, question: Question) -> int:
    """Which thing the question names: by colour, or by shape."""
    words = question.text.split()
    named = [
        index
        for index, thing in enumerate(scene.things)
        if thing.colour in words or any(word in words for word in WORDS_BY_SHAPE[thing.shape])
    ]
    assert len(named) == 1, question
    return named[0]


def pose_at(scene: Scene, index: int, tau: float) -> Pose:
    return poses(scene, tau)[index]


def answer_from_poses(scene: Scene, question: Question) -> str | None:
    """The answer as the poses at the start and the end give it; None for forms that this does not cover."""
    form = question.form
    if form == "time closer":
        distances = [np.hypot(*(np.subtract(*(pose[:2] for pose in poses(scene, tau))))) for tau in (-5.0, 5.0)]
        return "start" if distances[0] < distances[1] else "end"
    if form in ("side", "time higher", "time bigger", "time gone"):
        index = shape_asked_about(scene, question)
        start, end = pose_at(scene, index, -5.0), pose_at(scene, index, 5.0)
        return {
            "side": "left" if start.x < end.x else "right",
            "time higher": "start" if start.y < end.y else "end",
            "time bigger": "start" if start.radius > end.radius else "end",
            "time gone": "start" if end.visible else "end",
        }[form]
    if form == "who":
        return scene.things[_who(scene, question.text)].shape
    return None


def _who(scene: Scene, text: str) -> int:
    if "behind" in text or "goes after" in text:
        start, end = poses(scene, -5.0), poses(scene, 5.0)
        moves_right = end[0].x > start[0].x
        return min(range(2), key=lambda index: start[index].x if moves_right else -start[index].x)
    is_first = "first" in text
    rest = poses(scene, 0.0)
    taus = [float(tau) for tau in (range(-5, 0) if is_first else range(1, 6))]
    acting = {index for index in range(2) for tau in taus if not np.allclose(poses(scene, tau)[index], rest[index])}
    assert len(acting) == 1
    return acting.pop()


def test_answers_are_what_the_poses_show():
    forms = []
    for scene, question in asked():
        answer = answer_from_poses(scene, question)
        if answer is not None:
            forms.append(question.form)
            assert question.answer == answer, (scene, question)
    assert set(forms) == {"side", "time higher", "time bigger", "time gone", "time closer", "who"}


def test_colour_shape_and_count_are_asked_of_one_thing():
    for scene, question in asked():
        if question.question_type == "count":
            assert question.answer == {1: "one", 2: "two"}[len(scene.things)]
        elif question.form in ("colour", "shape"):
            thing = scene.things[shape_asked_about(scene, question)]
            assert question.answer == getattr(thing, question.form)
            assert question.answer not in question.text.split()


def test_every_type_of_question_is_asked_and_answers_form_a_closed_list():
    train = [question for clip in clips("train") for question in questions_of(clip.scene, np.random.default_rng(1))]
    answers = closed_answers(train)
    assert len(set(answers)) == len(answers) < 45
    test = [question for clip in clips("test") for question in questions_of(clip.scene, np.random.default_rng(2))]
    assert {question.question_type for question in test} == {"colour", "shape", "count", "action", "order"}
    assert {question.answer for question in test} <= set(answers)


def test_a_single_frame_answers_what_is_visible_and_guesses_the_rest():
    seen = Question(text="", answer="red", question_type="colour", form="colour", seen=("red",))
    either = Question(text="", answer="ring", question_type="order", form="who", seen=("ring", "star"))
    often, rare, even = (
        Question(text="", answer=answer, question_type="action", form=form)
        for answer, form in (("jump", "action"), ("spin", "action"), ("left", "side"))
    )
    other = Question(text="", answer="right", question_type="action", form="side")
    train = [often, often, rare, even, other]
    values = [single_frame_accuracy([question], train) for question in (seen, either, often, rare, even)]
    assert values == [1.0, 0.5, 1.0, 0.0, 0.5]


def attributes_that_differ(one: Statement, other: Statement) -> list[str]:
    """Names of the facts in which two statements differ, each once for every thing it differs in."""
    renamed = {(m.colour, m.shape) for m in one.mentions} ^ {(m.colour, m.shape) for m in other.mentions}
    looks = [
        min(
            (
                [name for name in ("colour", "shape", "size") if getattr(a, name) != getattr(b, name)]
                for b in other.mentions
            ),
            key=len,
        )
        for a in one.mentions
        if a not in other.mentions
    ]
    texture = ["texture"] if one.texture != other.texture else []
    deeds = [sorted((c.action, c.phase, c.direction) for c in s.claims) for s in (one, other)]
    who = [{(c.phase, c.actors) for c in s.claims} for s in (one, other)]
    action = ["action"] if deeds[0] != deeds[1] or (not renamed and who[0] != who[1]) else []
    return [fact for facts in looks for fact in facts] + texture + action


def test_hard_options_differ_in_one_attribute_and_two_of_them_in_the_action():
    rng = np.random.default_rng(0)
    for clip in (*clips("test"), *clips("temporal")):
        choice = hard_choice(rng, clip.scene, CONFIG.richness)
        assert choice is not None
        true = choice.options[choice.answer].statement
        assert true == meaning_of(clip.scene)
        wrong = [option for place, option in enumerate(choice.options) if place != choice.answer]
        differences = [attributes_that_differ(true, option.statement) for option in wrong]
        assert [len(difference) for difference in differences] == [1] * 4, (choice, differences)
        assert sum(difference == ["action"] for difference in differences) == 2
        assert len({option.text for option in choice.options}) == 5


def test_random_options_are_captions_of_other_clips_that_do_not_hold():
    rng = np.random.default_rng(0)
    others = [clip.captions[0] for clip in clips("test")]
    answers = []
    for clip in clips("test"):
        choice = random_choice(rng, clip.scene, clip.captions[0], others)
        assert choice is not None
        answers.append(choice.answer)
        assert [agrees(option.statement, meaning_of(clip.scene)) for option in choice.options].count(True) == 1
        assert choice.options[choice.answer] == clip.captions[0]
    assert set(answers) == set(range(5))
    assert random_choice(rng, clips("test")[0].scene, others[0], others[:3]) is None


def test_expected_recall_is_the_mean_over_all_orders_of_what_scores_alike():
    for num_equal, rank in itertools.product(range(1, 6), (1, 2, 5)):
        orders = list(itertools.permutations(range(num_equal)))
        assert expected_recall(num_equal, rank) == pytest.approx(np.mean([0 in order[:rank] for order in orders]))


def test_ceilings_of_the_temporal_test_are_those_that_the_pixels_give():
    temporal = clips("temporal")
    videos = [render_video(clip.scene, num_frames=CONFIG.num_frames, size_px=64) for clip in temporal]
    middles = [video[CONFIG.num_frames // 2].tobytes() for video in videos]
    bags = [frozenset(frame.tobytes() for frame in video) for video in videos]

    def in_group(looks: list) -> float:
        keys = [(clip.group, look) for clip, look in zip(temporal, looks, strict=True)]
        return float(np.mean([1 / keys.count(key) for key in keys]))

    single = retrieval_ceilings(temporal, agrees_with_frame)
    bag = bag_of_frames_ceilings(temporal, CONFIG.num_frames)
    oracle = retrieval_ceilings(temporal, agrees)
    for direction in ("t2v", "v2t"):
        assert single[f"{direction}/group_r1"] == in_group(middles) == 0.25
        assert bag[f"{direction}/group_r1"] == in_group(bags) == 0.5
        assert oracle[f"{direction}/group_r1"] == in_group([video.tobytes() for video in videos]) == 1.0


def test_the_oracle_finds_every_test_clip_and_a_single_frame_is_never_better():
    oracle, single = (retrieval_ceilings(clips("test"), scorer) for scorer in (agrees, agrees_with_frame))
    assert oracle["t2v/r1"] >= 0.9
    assert all(single[key] <= oracle[key] for key in oracle)


def test_a_single_frame_leaves_the_actions_of_a_hard_choice_open():
    rng = np.random.default_rng(0)
    choices: dict[str, list[Choice]] = {}
    for clip in clips("test"):
        choice = hard_choice(rng, clip.scene, CONFIG.richness)
        assert choice is not None
        choices[clip.clip_name] = [choice]
    scenes = {clip.clip_name: clip.scene for clip in clips("test")}
    assert choice_ceilings(choices, scenes, agrees) == {"choice/hard": 1.0}
    assert choice_ceilings(choices, scenes, agrees_with_frame) == {"choice/hard": pytest.approx(1 / 3)}


def test_choices_stay_hard_in_a_poor_corpus():
    poor = Richness(num_colours=3, num_shapes=3, num_actions=8)
    for scene in train_scenes(0, poor, 60):
        choice = hard_choice(np.random.default_rng(1), scene, poor)
        assert choice is not None
        assert len(choice.options) == 5


def test_hard_choices_for_training_show_nothing_that_is_held_out():
    held_out = held_out_combinations(CONFIG.seed, CONFIG.richness)
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    num_free = 0
    for scene in train_scenes(CONFIG.seed, CONFIG.richness, 300):
        choice, free = hard_choice(rng, scene, CONFIG.richness, held_out), hard_choice(other, scene, CONFIG.richness)
        assert choice is not None
        assert free is not None
        shown = [combinations_shown(option.statement) for option in choice.options]
        assert held_out.isdisjoint(itertools.chain.from_iterable(shown))
        num_free += any(not held_out.isdisjoint(combinations_shown(option.statement)) for option in free.options)
    assert num_free > 100  # without the rule, what was held out would be wrong in every choice but those of the tests


def combinations_shown(statement: Statement) -> list[tuple[str, str, str]]:
    """(colour, shape, action) of everything that a statement says to act."""
    return [(*actor, claim.action) for claim in statement.claims for actor in claim.actors]
