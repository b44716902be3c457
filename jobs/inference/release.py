"""The model that ships with the package: the weights of `make pretrain` as float16, with their own scores.

run folder ──ship──► float16 weights, configuration, words ──evaluate──► protocol card, scores.json, README.md

Equal runs give equal bytes: no file holds a date, a path of a machine, or the commit of the code that wrote it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import torch
import tyro

from cluster.connection import connected_ray
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.evaluation.cards import EXPORTED, Card
from jobs.evaluation.scoring import EvaluateConfig, evaluate
from jobs.inference.hub_folder import without_queues
from jobs.inference.model import RELEASED, TINY
from jobs.inference.release_card import release_card
from jobs.run import run_files
from jobs.run.fields import as_dict, differences, flat
from jobs.run.presets import tiny
from jobs.run.run_identity import config_of
from jobs.tasks import retrieval
from jobs.tasks.retrieval import Scored
from jobs.tracking.machine import DIRTY
from jobs.training import checkpoints
from pipeline import storage
from pipeline.records import Kind
from pipeline.stream.source import split_rows

MAX_BYTES = 2 * 2**20
CARD = f"{EXPORTED}/retrieval-test.json"
SCORES, RESULTS = "scores.json", "results.json"
COPIED = ("tokenizer.json", "significant_words.json", run_files.IDENTITY)
FREE = ("name", "data.manifest", "data.decoder", "placement.storage", "placement.experiment")
"""Fields in which a run of `make pretrain` may differ from the preset; preparing the corpus chooses the decoder."""
MEASURED = ("test/", "temporal/")


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """The run that ships, and the folder."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a finished run of `make pretrain`."""
    out: Annotated[str, tyro.conf.Positional] = str(RELEASED / TINY)
    """Folder to write; by default that of the package, from which `load` reads the model."""
    manifest: str | None = None
    """Manifest of the embedded corpus; None: its path when the run was trained."""
    check: bool = False
    """Write nothing: make the files again, and name each that is not as in `out`."""


def release(config: ReleaseConfig) -> str:
    """Write the folder and return its path. ValueError if it exists, or the run is none of `make pretrain`."""
    out = storage.absolute(config.out)
    if storage.exists(f"{out}/{run_files.CONFIG}"):
        raise ValueError(f"{out} holds a model already; delete it or take another folder, or compare with --check")
    for name, data in make_files(config).items():
        storage.write_bytes_atomic(f"{out}/{name}", data)
    return out


def find_changes(config: ReleaseConfig) -> list[str]:
    """Make the files again; return a line per file that differs from that in the folder, or that only one has."""
    out = storage.absolute(config.out)
    storage.check_readable(f"{out}/{run_files.CONFIG}")
    made = make_files(config)
    there = {name: storage.read_bytes(f"{out}/{name}") for name in storage.list_files(out)}
    return [
        f"{name}: {'differs' if name in made and name in there else 'only made now' if name in made else 'only there'}"
        for name in sorted(made.keys() | there.keys())
        if made.get(name) != there.get(name)
    ]


def make_files(config: ReleaseConfig) -> dict[str, bytes]:
    """Return the released files by name, scored on the corpus of the run. ValueError for a run that cannot ship."""
    run = storage.absolute(config.run)
    results = results_of(run)
    manifest = storage.absolute(config.manifest or config_of(run).data.manifest)
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in model_files(run, manifest).items():
            storage.write_bytes_atomic(f"{scratch}/{TINY}/{name}", data)
        card, order = score(f"{scratch}/{TINY}", manifest, scratch)
    return model_files(run, tiny().data.manifest) | score_files(card, order, results)


def results_of(run: str) -> dict[str, Any]:
    """Return results.json of a run of `make pretrain`. ValueError if it is another run, of no commit, or unscored."""
    path = f"{run}/{RESULTS}"
    if not storage.exists(path):
        raise ValueError(f"{run} has no scores: it holds no {RESULTS}; train it to its end by the same command again")
    preset, kept = (
        {name: value for name, value in flat(as_dict(config)).items() if name not in FREE}
        for config in (tiny(), config_of(run))
    )
    if changes := differences(preset, kept):
        raise ValueError(f"{run} is no run of `make pretrain`: {'; '.join(changes)}; train one without options")
    results = run_files.read_json(path)
    commit = str(results["commit"])
    if commit.endswith(DIRTY) or commit == "unknown":
        raise ValueError(
            f"{run} was trained by {commit} code, which nobody else has; commit every change and train it anew"
        )
    return results


def model_files(run: str, manifest: str) -> dict[str, bytes]:
    """Return what `load` reads of a run, by name: float16 weights, words, and the configuration with `manifest` and the
    preset's placement."""
    settings = config_of(run)
    data = dataclasses.replace(settings.data, manifest=manifest)
    settings = dataclasses.replace(settings, name=TINY, data=data, placement=tiny().placement)
    weights = as_float16(without_queues(storage.read_bytes(run_files.best_weights(run))))
    copied = {name: storage.read_bytes(f"{run}/{name}") for name in COPIED}
    return {run_files.CONFIG: run_files.json_bytes(as_dict(settings)), run_files.WEIGHTS: weights, **copied}


def as_float16(data: bytes) -> bytes:
    """Return a safetensors file with its floating-point tensors as float16, which loading casts back. ValueError for a
    value beyond float16's, or a file that is still too large to ship."""
    stored = {}
    for name, tensor in checkpoints.read_weights(data, "the model of the run").items():
        stored[name] = tensor.half() if tensor.is_floating_point() else tensor
        if not torch.isfinite(stored[name]).all():
            raise ValueError(
                f"{name} has values up to {tensor.abs().max():g}, and float16 ends at {torch.finfo(torch.half).max:g}; "
                "ship another run"
            )
    packed = safetensors.torch.save(stored, checkpoints.METADATA)
    if len(packed) > MAX_BYTES:
        raise ValueError(f"the weights take {len(packed):,} bytes, and {MAX_BYTES:,} may ship; take a smaller model")
    return packed


def score(folder: str, manifest: str, scratch: str) -> tuple[Card, dict[str, float]]:
    """Return the protocol card of a folder on the test split, and its scores within the groups of the temporal split.
    `scratch`: folder for raw results."""
    placement = dataclasses.replace(tiny().placement, storage=f"{scratch}/runs")
    split = tiny().data.temporal_split
    wish = EvaluateConfig(run=folder, manifest=manifest, out=f"{scratch}/test", placement=placement)
    with connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        card = evaluate(wish)
        evaluate(dataclasses.replace(wish, split=split, out=f"{scratch}/temporal"))
    saved = retrieval.load_scores(f"{scratch}/temporal/scores.npz")
    rows = split_rows(manifest, str(split))[Kind.VIDEO]
    group_of = dict(zip(rows["clip_id"].to_pylist(), rows["group"].to_pylist(), strict=True))
    _, groups = np.unique([group_of[clip] for clip in saved["clip_ids"].tolist()], return_inverse=True)
    scored = Scored(clip_ids=saved["clip_ids"], dual=saved["dual"], cross=saved["cross"])
    return card, retrieval.group_results(scored, groups, "temporal")


def score_files(card: Card, order: Mapping[str, float], results: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the card, the scores of the shipped weights beside those of the run, and README.md, by name."""
    preset = tiny()
    protocol = dataclasses.replace(card.protocol, run=TINY, manifest=preset.data.manifest)
    shipped = dataclasses.replace(card, protocol=protocol, date="", commit="")
    own = {name: value for name, value in results.items() if name.startswith(MEASURED)}
    scores = {"shipped": {**card.scores, **order}, "run": own}
    return {
        CARD: run_files.json_bytes(as_dict(shipped)),
        SCORES: run_files.json_bytes(scores),
        "README.md": release_card(shipped, scores, results).encode(),
    }
