"""Time, reversal, held-out combinations and the groups of the temporal test."""

import itertools
from functools import cache

import numpy as np
import pytest

from pipeline.synthetic.clips import CorpusConfig, clips_of
from pipeline.synthetic.difficulty import frames_shown
from pipeline.synthetic.render import render_image, render_video
from pipeline.synthetic.scenes import (
    COLOURS,
    JOINT_ACTIONS,
    SHAPES,
    SOLO_ACTIONS,
    TEXTURES,
    Background,
    Event,
    Scene,
    Thing,
    combinations_of,
    poses,
    tau_at,
)
from pipeline.synthetic.splits import (
    Richness,
    held_out_combinations,
    novel_scenes,
    temporal_groups,
    train_scenes,
    uncovered_pairs,
)
from pipeline.synthetic.statements import meaning_of

RICHNESS = Richness()
REVERSALS = [("left", "right"), ("rise", "fall"), ("grow", "shrink"), ("vanish", "appear"), ("meet", "part")]
NUM_FRAMES = 12
PAIR = (
    Thing(colour="red", shape="ring", size="small", x=18.0, y=30.0),
    Thing(colour="blue", shape="star", size="big", x=46.0, y=36.0),
)


@cache
def default_train_scenes() -> list[Scene]:
    return train_scenes(0, RICHNESS, CorpusConfig().num_train_videos)


def scene_with(*events: Event, texture: str = "dotted") -> Scene:
    return Scene(things=PAIR, events=events, background=Background(texture=texture, seed=5))


def event_of(action: str, phase: str = "whole") -> Event:
    return Event(action=action, actors=(0, 1) if action in JOINT_ACTIONS else (0,), phase=phase)


def test_the_frame_in_the_middle_is_the_one_a_sampler_of_one_frame_takes():
    assert tau_at((0 + NUM_FRAMES) // 2, NUM_FRAMES) == 0
    assert {tau_at(frame, NUM_FRAMES) for frame in range(NUM_FRAMES)} == set(range(-5, 6))


@pytest.mark.parametrize("action", [*SOLO_ACTIONS, *JOINT_ACTIONS])
@pytest.mark.parametrize("phase", ["whole", "first", "second"])
def test_no_action_shows_in_the_middle_and_every_action_shows_elsewhere(action: str, phase: str):
    still, acting = scene_with(), scene_with(event_of(action, phase))
    rest = np.array(poses(still, 0.0))
    shown = {tau for tau in range(-5, 6) if not np.allclose(np.array(poses(acting, float(tau))), rest)}
    assert 0 not in shown
    expected = {"whole": range(-5, 6), "first": range(-5, 0), "second": range(1, 6)}[phase]
    assert shown <= set(expected)
    is_momentary = (action, phase) in (("vanish", "first"), ("appear", "second"))
    assert bool(shown) != is_momentary


@pytest.mark.parametrize(("action", "reversed_action"), REVERSALS)
def test_opposite_actions_are_each_others_reversal(action: str, reversed_action: str):
    scenes = [scene_with(event_of(name)) for name in (action, reversed_action)]
    forth, back = (render_video(scene, num_frames=NUM_FRAMES, size_px=64) for scene in scenes)
    np.testing.assert_array_equal(forth[1:], back[:0:-1])
    np.testing.assert_array_equal(forth[0], forth[1])
    assert (forth != back).any()


def test_a_chase_backwards_is_the_other_one_chasing():
    chase, other = (scene_with(Event(action="chase", actors=actors)) for actors in ((0, 1), (1, 0)))
    for tau in range(-5, 6):
        np.testing.assert_allclose(poses(chase, float(tau)), poses(other, float(-tau)))
    assert poses(chase, 5.0)[0].x > poses(chase, -5.0)[0].x, "the chaser starts on the left, so it moves right"


def test_what_meets_touches_at_the_end_and_what_passes_swaps_places():
    met = poses(scene_with(event_of("meet")), 5.0)
    assert np.hypot(met[0].x - met[1].x, met[0].y - met[1].y) == pytest.approx(met[0].radius + met[1].radius)
    for phase, tau in (("first", -5.0), ("second", 5.0)):
        before, after = poses(scene_with(event_of("pass", phase)), 0.0), poses(scene_with(event_of("pass", phase)), tau)
        assert [pose[:2] for pose in after] == [pytest.approx(pose[:2]) for pose in reversed(before)]


@pytest.mark.parametrize("texture", TEXTURES)
def test_every_shape_in_every_colour_stands_out_from_the_background(texture: str):
    for colour, shape in itertools.product(COLOURS, SHAPES):
        thing = Thing(colour=colour, shape=shape, size="small", x=32.0, y=32.0)
        background = Background(texture=texture, seed=1)
        image = render_image(Scene(things=(thing,), events=(), background=background), size_px=64).astype(int)
        empty = render_image(Scene(things=(), events=(), background=background), size_px=64).astype(int)
        changed = np.abs(image - empty).max(-1) > 30
        assert changed.sum() > 40, (colour, shape)
        assert changed[:20].sum() == changed[44:].sum() == 0


def test_larger_frames_show_the_same_scene():
    small, large = (render_image(scene_with(texture="plain"), size_px=size).astype(float) for size in (64, 128))
    pooled = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(pooled - small).mean() < 4


def test_held_out_combinations_never_occur_in_training_and_are_all_that_val_and_test_show():
    held_out = held_out_combinations(0, RICHNESS)
    assert 0.15 < len(held_out) / (8 * 6 * 16) < 0.25
    for scene in default_train_scenes():
        assert held_out.isdisjoint(combinations_of(scene))
    for split in ("val", "test"):
        scenes = novel_scenes(0, RICHNESS, split, 60)
        assert all(combinations_of(scene)[0] in held_out for scene in scenes)
        assert len(set(map(meaning_of, scenes))) == 60


def test_training_shows_every_pair_of_attributes():
    scenes = default_train_scenes()
    assert uncovered_pairs(RICHNESS, scenes) == set()
    doubles = sum(len(scene.things) + len(scene.events) > 2 for scene in scenes)
    assert 0.25 < doubles / len(scenes) < 0.35
    assert uncovered_pairs(RICHNESS, scenes[:10])


def test_things_of_one_scene_differ_in_colour_and_in_shape():
    for scene in train_scenes(1, RICHNESS, 300):
        for first, second in itertools.combinations(scene.things, 2):
            assert first.colour != second.colour
            assert first.shape != second.shape
            assert np.hypot(first.x - second.x, first.y - second.y) > first.radius + second.radius


def test_groups_share_the_middle_frame_and_differ_in_order_or_direction():
    groups = temporal_groups(0, RICHNESS, 50)
    assert len(groups) == 50
    for group in groups:
        videos = [render_video(scene, num_frames=NUM_FRAMES, size_px=64) for scene in group]
        assert len({video[NUM_FRAMES // 2].tobytes() for video in videos}) == 1
        assert len({video.tobytes() for video in videos}) == 4
        assert len({meaning_of(scene) for scene in group}) == 4
        by_pixels = [frozenset(frame.tobytes() for frame in video) for video in videos]
        by_poses = [frames_shown(scene, NUM_FRAMES) for scene in group]
        for first, second in itertools.combinations(range(4), 2):
            assert (by_pixels[first] == by_pixels[second]) == (by_poses[first] == by_poses[second])
        assert sorted(by_poses.count(bag) for bag in by_poses) == [2, 2, 2, 2]


def test_a_clip_depends_on_its_own_seed_split_and_index_only():
    assert train_scenes(3, RICHNESS, 40)[:10] == train_scenes(3, RICHNESS, 10)
    assert train_scenes(3, RICHNESS, 10) != train_scenes(4, RICHNESS, 10)
    few, many = (clips_of(CorpusConfig(num_train_videos=n, num_train_images=2, num_val=3, num_test=3)) for n in (5, 9))
    assert [clip for clip in few if clip.kind == "video"] == [
        clip for clip in many if clip.kind == "video" and clip.clip_name not in {c.clip_name for c in many[5:9]}
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [({"num_colours": 11}, "richness.num_colours must be in 3..10, got 11"), ({"double_share": 1.5}, "double_share")],
)
def test_impossible_richness_is_refused(values: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Richness(**values)


def test_more_distinct_test_clips_than_there_are_is_refused():
    with pytest.raises(ValueError, match="distinct scenes found; ask for fewer"):
        novel_scenes(0, Richness(num_colours=3, num_shapes=3, num_actions=8, double_share=0.0), "test", 200)
