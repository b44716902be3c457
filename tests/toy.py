"""Small runs: one on a corpus that nobody decodes, for what is checked before a start, and one that is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jobs.benchmarks.kills import small_placement, small_run
from jobs.run.config import PretrainConfig
from jobs.run.presets import tiny
from pipeline.corpus.manifest import Manifest, clip_id, make_manifest, write_manifest

TOY_STEPS = 6
SPLITS = {"train": 150, "val": 5, "test": 6, "temporal": 8}


def corpus(splits: dict[str, int] = SPLITS, *, images: int = 3, kind: str = "video", group: bool = True) -> Manifest:
    rows = [
        {
            "clip_id": clip_id("toy", f"{split}/{index}.mp4"),
            "uri": f"/videos/{split}/{index}.mp4",
            "captions": ["a red square rises"],
            "kind": "image" if split == "train" and index < images else kind,
            "split": split,
            "group": f"g{index // 4}" if group and split == "temporal" else None,
            "width": 48,
            "height": 48,
            "num_frames": 8,
            "bytes": 1,
            "checksum": "c",
        }
        for split, count in splits.items()
        for index in range(count)
    ]
    return make_manifest("toy", "/videos", rows)


def run_of(folder: Path, manifest: Manifest | None = None) -> PretrainConfig:
    path = folder / "manifest.parquet"
    write_manifest(manifest or corpus(), str(path))
    data = dataclasses.replace(tiny().data, manifest=str(path), num_frames=6, frame_size_px=64)
    optim = dataclasses.replace(tiny().optim, num_steps=700, lr=2e-3)
    placement = dataclasses.replace(tiny().placement, storage=str(folder / "runs"))
    return dataclasses.replace(tiny(), data=data, optim=optim, placement=placement)


def toy_config(name: str, manifest: str, storage: Path) -> PretrainConfig:
    """Return the config of the fixture `toy_run`: two ranks, a checkpoint after every second of `TOY_STEPS` steps."""
    config = small_run(name, manifest, small_placement(str(storage)))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, temporal_split=None),
        optim=dataclasses.replace(config.optim, num_steps=TOY_STEPS),
        selection=dataclasses.replace(config.selection, evaluate_every=2),
    )
