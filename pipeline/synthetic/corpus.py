"""The corpus as files: encoded clips, annotations, scenes, questions, choices, and what they can show at best."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.codec import encode_video
from pipeline.synthetic.captions import Caption, Style, caption_of
from pipeline.synthetic.render import render_image, render_video
from pipeline.synthetic.scenes import Scene
from pipeline.synthetic.splits import Richness, novel_scenes, rng_for, still_scenes, temporal_groups, train_scenes

SPLITS = ("train", "val", "test", "temporal")
SUMMARY_NAME = "corpus.json"
FORMAT_VERSION = 1
"""Raised when the same config gives other files."""

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What names an embedded corpus entirely: the same config gives the same scenes, captions and frames."""

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
        for name, least in (("num_train_videos", 1), ("num_val", 1), ("num_test", 1), ("num_temporal_groups", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, least in (("seed", 0), ("num_train_images", 0), ("captions_per_clip", 1), ("fps", 1)):
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
    """Every clip of the corpus with its scene and captions, in the order of the annotations."""
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
    """Different sentences as far as the grammar gives them."""
    captions: dict[str, Caption] = {}
    for _ in range(20 * num_captions):
        caption = caption_of(scene, Style.draw(rng, names_everything=names_everything))
        captions.setdefault(caption.text, caption)
        if len(captions) == num_captions:
            break
    return tuple(captions.values())


def make_corpus(config: CorpusConfig, out_path: Path, *, num_processes: int = 1, progress: Progress | None = None) -> bool:
    """Whether the corpus had to be made; afterwards it lies complete under `out_path`.

    A finished corpus of the same config is left alone, anything else that lies there is refused with ValueError.
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
    wanted = {"format_version": FORMAT_VERSION, **_flat(dataclasses.asdict(config))}
    present = {"format_version": summary.get("format_version"), **_flat(summary.get("config", {}))}
    if wanted == present:
        return True
    different = sorted(key for key in wanted | present if wanted.get(key) != present.get(key))
    listed = ", ".join(f"{key} is {present.get(key)} there, {wanted.get(key)} wanted" for key in different)
    raise ValueError(f"{out_path} holds a corpus of another config ({listed}): name another folder or remove it")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _write(config: CorpusConfig, root: Path, num_processes: int, progress: Progress | None) -> None:
    clips = clips_of(config)
    for folder in {str(Path(clip.clip_name).parent) for clip in clips} | {"annotations"}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    hashes: list[str] = []
    for digest in _map(partial(_write_clip, config, root), clips, num_processes):
        hashes.append(digest)
        if progress is not None:
            progress(len(hashes), len(clips))
    documents = {f"annotations/{split}.jsonl": _annotations(clips, split) for split in SPLITS}
    documents["scenes.jsonl"] = [_truth(clip) for clip in clips]
    for name, rows in documents.items():
        content = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
        hashes.append(hashlib.sha256(content).hexdigest())
        (root / name).write_bytes(content)
    summary = {
        "format_version": FORMAT_VERSION,
        "config": dataclasses.asdict(config),
        "content_hash": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }
    (root / SUMMARY_NAME).write_text(json.dumps(summary, indent=2) + "\n")


def _map(work: Callable[[SceneClip], str], clips: Sequence[SceneClip], num_processes: int) -> Iterator[str]:
    if num_processes <= 1:
        yield from map(work, clips)
        return
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, clips, chunksize=20)


def _write_clip(config: CorpusConfig, root: Path, clip: SceneClip) -> str:
    """Draws, encodes and writes one clip; the hash of its frames before encoding."""
    if clip.kind == "video":
        frames = render_video(clip.scene, num_frames=config.num_frames, size_px=config.size_px)
        content = encode_video(frames, fps=config.fps)
    else:
        frames = render_image(clip.scene, size_px=config.size_px)
        buffer = io.BytesIO()
        Image.fromarray(frames).save(buffer, format="JPEG", quality=92)
        content = buffer.getvalue()
    (root / clip.clip_name).write_bytes(content)
    return hashlib.sha256(frames.tobytes()).hexdigest()


def _annotations(clips: Sequence[SceneClip], split: str) -> list[dict[str, Any]]:
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


def _truth(clip: SceneClip) -> dict[str, Any]:
    scene = dataclasses.asdict(clip.scene)
    return {"clip_name": clip.clip_name, "type": clip.kind, "split": clip.split, "group": clip.group, **scene}
