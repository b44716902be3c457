"""The clips of a corpus: its config, and the scene and captions of every clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.synthetic.captions import Caption, Style, caption_of
from pipeline.synthetic.scenes import Scene
from pipeline.synthetic.splits import Richness, novel_scenes, rng_for, still_scenes, temporal_groups, train_scenes

SPLITS = ("train", "val", "test", "temporal")


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
    """Frames per clip."""
    fps: int = 6
    """Frames per second."""
    captions_per_clip: int = 3
    """Captions of each training clip; clips of other splits have one, which names everything."""
    richness: Richness = field(default_factory=Richness)
    """How many colours, shapes and actions there are."""

    def __post_init__(self) -> None:
        positive = ("num_train_videos", "num_val", "num_test", "num_temporal_groups", "captions_per_clip", "fps")
        for name, least in (dict.fromkeys(positive, 1) | {"seed": 0, "num_train_images": 0}).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_frames < 8:
            raise ValueError(f"num_frames must be at least 8 for the actions to be seen, got {self.num_frames}")
        if self.size_px < 32 or self.size_px % 2:
            raise ValueError(f"size_px must be even and at least 32, got {self.size_px}")


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
    groups = temporal_groups(seed, richness, config.num_temporal_groups)
    scenes = {
        "train": [("video", None, scene) for scene in train_scenes(seed, richness, config.num_train_videos)]
        + [("image", None, scene) for scene in still_scenes(seed, richness, config.num_train_images)],
        "val": [("video", None, scene) for scene in novel_scenes(seed, richness, "val", config.num_val)],
        "test": [("video", None, scene) for scene in novel_scenes(seed, richness, "test", config.num_test)],
        "temporal": [("video", f"g{index:03d}", scene) for index, group in enumerate(groups) for scene in group],
    }
    return [
        _clip(config, split, index, kind, group, scene)
        for split in SPLITS
        for index, (kind, group, scene) in enumerate(scenes[split])
    ]


def _clip(config: CorpusConfig, split: str, index: int, kind: str, group: str | None, scene: Scene) -> SceneClip:
    rng = rng_for(config.seed, "caption", SPLITS.index(split), index)
    number = index if kind == "video" else index - config.num_train_videos
    return SceneClip(
        clip_name=f"videos/{split}/{number:05d}.mp4" if kind == "video" else f"images/{split}/{number:05d}.jpg",
        kind=kind,
        split=split,
        group=group,
        scene=scene,
        captions=_captions(rng, scene, config.captions_per_clip if split == "train" else 1, split != "train"),
    )


def _captions(rng: np.random.Generator, scene: Scene, num_captions: int, names_everything: bool) -> tuple[Caption, ...]:
    """Draw up to `num_captions` distinct sentences, as far as the grammar has them."""
    captions: dict[str, Caption] = {}
    for _ in range(20 * num_captions):
        caption = caption_of(scene, Style.draw(rng, names_everything=names_everything))
        captions.setdefault(caption.text, caption)
        if len(captions) == num_captions:
            break
    return tuple(captions.values())
