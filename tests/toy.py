"""A corpus that nobody decodes, and a run on it: for what is looked at before a start."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jobs.run.config import PretrainConfig
from jobs.run.presets import tiny
from pipeline.corpus.manifest import Manifest, clip_id, make_manifest, write_manifest

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
