"""What scores of the embedded corpus are compared on: the same clips and captions since version 0.1.0, and none of them
in training."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest

from pipeline.synthetic.clips import CorpusConfig, SceneClip, clips_of
from pipeline.synthetic.render import render_video
from pipeline.synthetic.scenes import combinations_of
from pipeline.synthetic.splits import Richness, held_out_combinations

HASHES = {
    "test": "b73f0a42da1c4760acf5144ce18453c2d2b4b839aeafa852ce17d814a62f73ce",
    "temporal": "23c55e909613949b546005780e6f0d9608bc109695e27f3d1139e3cb503b9867",
}
"""SHA-256 over name, group, captions and pixels of each clip, as version 0.1.0 makes them."""


@cache
def clips_by_split() -> dict[str, list[SceneClip]]:
    clips = clips_of(CorpusConfig())
    return {split: [clip for clip in clips if clip.split == split] for split in ("train", "test", "temporal")}


@pytest.mark.parametrize("split", HASHES)
def test_the_clips_and_captions_of_a_test_are_those_of_version_0_1_0(split: str) -> None:
    digest = hashlib.sha256()
    for clip in clips_by_split()[split]:
        digest.update(repr((clip.clip_name, clip.group, [caption.text for caption in clip.captions])).encode())
        digest.update(render_video(clip.scene, num_frames=12, size_px=64).tobytes())
    assert digest.hexdigest() == HASHES[split]


@pytest.mark.parametrize("split", HASHES)
def test_training_shows_no_scene_and_no_caption_of_a_test(split: str) -> None:
    train, tested = clips_by_split()["train"], clips_by_split()[split]
    assert {clip.scene for clip in train}.isdisjoint(clip.scene for clip in tested)
    seeds = ({clip.scene.background.seed for clip in clips} for clips in (train, tested))
    assert set.isdisjoint(*seeds)
    captions = ({caption.text for clip in clips for caption in clip.captions} for clips in (train, tested))
    assert set.isdisjoint(*captions)


def test_training_shows_no_held_out_combination() -> None:
    held_out = held_out_combinations(0, Richness())
    shown = {combination for clip in clips_by_split()["train"] for combination in combinations_of(clip.scene)}
    assert held_out.isdisjoint(shown)
    assert held_out & {combinations_of(clip.scene)[0] for clip in clips_by_split()["test"]}
