"""The clips of a corpus: its config, and the scene and captions of every clip."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from pipeline.synthetic.captions import Caption, Style, caption_of
from pipeline.synthetic.clutter import NUM_THINGS, cluttered
from pipeline.synthetic.scenes import SOLO_ACTIONS, Scene
from pipeline.synthetic.splits import (
    Arrange,
    Richness,
    as_drawn,
    novel_scenes,
    rng_for,
    still_scenes,
    temporal_groups,
    train_scenes,
)
from pipeline.synthetic.wordy import wordy_caption

SPLITS = ("train", "val", "test", "temporal")
_WORDY_LENGTH = 5
"""Length of a wordy clip in plain clips."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Defines an embedded corpus completely: equal configs give equal scenes, captions and frames."""

    seed: int = 0
    """Changes every scene and caption."""
    num_train_videos: int = 2400
    """Clips to learn from."""
    num_train_images: int = 400
    """Still pictures to learn from."""
    num_val: int = 100
    """Clips of the validation split."""
    num_test: int = 200
    """Clips of the test split."""
    num_temporal_groups: int = 50
    """Groups of four clips that only actions or their order tell apart."""
    size_px: int = 64
    """Height and width of the frames."""
    num_frames: int = 12
    """Frames per clip; a wordy clip has five times as many."""
    fps: int = 6
    """Frames per second."""
    captions_per_clip: int = 3
    """Captions of each training clip; clips of other splits have one, which names everything."""
    richness: Richness = field(default_factory=Richness)
    """How many colours, shapes and actions there are."""
    variant: Literal["plain", "wordy"] = "plain"
    """`wordy`: longer clips with still distractors, captions of two sentences with few significant words, no questions
    and choices."""

    @property
    def is_wordy(self) -> bool:
        """Return whether captions are long and scenes have distractors."""
        return self.variant == "wordy"

    @property
    def frames_per_clip(self) -> int:
        """Return the number of frames of a video."""
        return self.num_frames * (_WORDY_LENGTH if self.is_wordy else 1)

    def __post_init__(self) -> None:
        positive = ("num_train_videos", "num_val", "num_test", "num_temporal_groups", "captions_per_clip", "fps")
        for name, least in (dict.fromkeys(positive, 1) | {"seed": 0, "num_train_images": 0}).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_frames < 8:
            raise ValueError(f"num_frames must be at least 8 for the actions to be seen, got {self.num_frames}")
        if self.size_px < 32 or self.size_px % 2:
            raise ValueError(f"size_px must be even and at least 32, got {self.size_px}")
        for name, number in (("colours", self.richness.num_colours), ("shapes", self.richness.num_shapes)):
            if self.is_wordy and number < max(NUM_THINGS):
                raise ValueError(
                    f"richness.num_{name} must be at least {max(NUM_THINGS)} for --variant wordy, whose clips show up "
                    f"to {max(NUM_THINGS)} things of different {name}, got {number}"
                )


@dataclass(frozen=True, kw_only=True)
class SceneClip:
    """One file of the corpus, before it is drawn."""

    clip_name: str
    """Path relative to the corpus, with suffix."""
    kind: str
    """`video` or `image`."""
    split: str
    group: str | None
    """Id of the temporal group."""
    scene: Scene
    captions: tuple[Caption, ...]


def clips_of(config: CorpusConfig) -> list[SceneClip]:
    """Return every clip of the corpus with its scene and captions, in the order of the annotations."""
    seed, richness = config.seed, config.richness
    arrange: Arrange = partial(cluttered, richness=richness) if config.is_wordy else as_drawn
    groups = temporal_groups(seed, _richness_of_groups(config), config.num_temporal_groups, arrange)
    scenes = {
        "train": [("video", None, scene) for scene in train_scenes(seed, richness, config.num_train_videos, arrange)]
        + [("image", None, scene) for scene in still_scenes(seed, richness, config.num_train_images, arrange)],
        "val": [("video", None, scene) for scene in novel_scenes(seed, richness, "val", config.num_val, arrange)],
        "test": [("video", None, scene) for scene in novel_scenes(seed, richness, "test", config.num_test, arrange)],
        "temporal": [("video", f"g{index:03d}", scene) for index, group in enumerate(groups) for scene in group],
    }
    return [
        _clip(config, split, index, kind, group, scene)
        for split in SPLITS
        for index, (kind, group, scene) in enumerate(scenes[split])
    ]


def _richness_of_groups(config: CorpusConfig) -> Richness:
    """Return the richness of the temporal test.

    A wordy one lacks `shake`: of its 60 frames, those of the first half are not those of the second, so that the frames
    without their order would tell which thing acts first.
    """
    if not config.is_wordy:
        return config.richness
    return replace(config.richness, num_actions=min(config.richness.num_actions, SOLO_ACTIONS.index("shake")))


def _clip(config: CorpusConfig, split: str, index: int, kind: str, group: str | None, scene: Scene) -> SceneClip:
    rng = rng_for(config.seed, "caption", SPLITS.index(split), index)
    number = index if kind == "video" else index - config.num_train_videos
    return SceneClip(
        clip_name=f"videos/{split}/{number:05d}.mp4" if kind == "video" else f"images/{split}/{number:05d}.jpg",
        kind=kind,
        split=split,
        group=group,
        scene=scene,
        captions=_captions(config, rng, scene, split),
    )


def _captions(config: CorpusConfig, rng: np.random.Generator, scene: Scene, split: str) -> tuple[Caption, ...]:
    """Draw distinct captions, as many as a clip of the split has, or as far as the grammar has them."""
    num_captions, names_everything = (config.captions_per_clip, False) if split == "train" else (1, True)
    captions: dict[str, Caption] = {}
    for _ in range(20 * num_captions):
        if config.is_wordy:
            caption = wordy_caption(rng, scene, names_everything=names_everything)
        else:
            caption = caption_of(scene, Style.draw(rng, names_everything=names_everything))
        captions.setdefault(caption.text, caption)
        if len(captions) == num_captions:
            break
    return tuple(captions.values())
