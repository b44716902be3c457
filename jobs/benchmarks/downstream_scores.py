"""Scores of fine-tuning: `downstream` of `python jobs/benchmark.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.command_line.parsing import option
from jobs.experiments.cells import read_cells, write_cells
from jobs.experiments.child_runs import run_child
from jobs.experiments.statistics import over_seeds
from jobs.run import presets, run_files
from jobs.run.datasets import known_recipes
from jobs.run.fields import flat
from jobs.run.recipes import fine_tuning
from jobs.run.run_identity import config_of, identity, with_values
from pipeline.storage import absolute

SCRATCH = {"model.initial_weights": None}
ONE_FRAME = {"data.num_frames": 1}
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "retrieval": ("tiny_retrieval", {}),
    "retrieval-scratch": ("tiny_retrieval", SCRATCH),
    "retrieval-one-frame": ("tiny_retrieval", ONE_FRAME),
    "qa": ("tiny_qa", {}),
    "qa-scratch": ("tiny_qa", SCRATCH),
    "qa-question-only": ("tiny_qa", {"task.is_video_hidden": True}),
    "multiple-choice": ("tiny_multiple_choice", {}),
    "multiple-choice-scratch": ("tiny_multiple_choice", SCRATCH),
    "multiple-choice-one-frame": ("tiny_multiple_choice", ONE_FRAME),
}
"""Name → recipe of jobs/finetune.py and the fields that it changes."""
R1, TEMPORAL, ACCURACY = "test/t2v/r1", "temporal/t2v/group_r1", "test/accuracy"
RANDOM, HARD = f"{ACCURACY}/random", f"{ACCURACY}/hard"
KEYS = {
    "tiny_retrieval": (R1, "test/v2t/r1", TEMPORAL),
    "tiny_qa": (ACCURACY, *(f"{ACCURACY}/{kind}" for kind in ("colour", "shape", "count", "action", "order"))),
    "tiny_multiple_choice": (RANDOM, HARD),
}
"""Recipe → the scores to record."""
SPENT = ("seconds/step", "seconds/data_wait", "seconds/evaluation")
ZERO_SHOT = "zero-shot"
DIFFERENCES = {
    "retrieval over zero-shot": ("retrieval", ZERO_SHOT, R1),
    "retrieval over scratch": ("retrieval", "retrieval-scratch", R1),
    "temporal over zero-shot": ("retrieval", ZERO_SHOT, TEMPORAL),
    "temporal over one frame": ("retrieval", "retrieval-one-frame", TEMPORAL),
    "answers over question only": ("qa", "qa-question-only", ACCURACY),
    "answers over scratch": ("qa", "qa-scratch", ACCURACY),
    "hard choices over one frame": ("multiple-choice", "multiple-choice-one-frame", HARD),
    "hard choices over scratch": ("multiple-choice", "multiple-choice-scratch", HARD),
}
"""Title → the two variants to compare, and the score."""
CORPUS = "corpora/embedded/corpus.json"
RESULTS = "docs/results/downstream.json"


def downstream(storage: str = "runs/benchmark", results: str = RESULTS, num_seeds: int = 3) -> dict[str, Any]:
    """Return the scores of fine-tuning `tiny` on each task of the embedded corpus, with and without pre-training.

    Zero-shot scores are those of the pre-training runs `seed-0` and so on. The scores of each run are added to the
    file `results` when it ends; scores in the file are not measured again, and finished runs in `storage` are reused.
    """
    fields = settings()
    cells = read_cells(results, fields)
    variants = (ZERO_SHOT, *VARIANTS)
    for seed in range(num_seeds):
        name, common = f"seed-{seed}", {"seed": seed, "placement.storage": storage}
        if all((variant, seed) in cells for variant in variants):
            continue
        pretraining = run_child(
            with_values(presets.tiny(), common, name=name), is_isolated=True
        )  # for its weights, too
        cells[ZERO_SHOT, seed] = kept("tiny_retrieval", pretraining.unwrap())
        write_cells(results, fields, cells)
        run_folder = absolute(f"{storage}/{name}")
        for variant in [variant for variant in VARIANTS if (variant, seed) not in cells]:
            recipe, changes = VARIANTS[variant]
            tuned = fine_tuning(known_recipes()[recipe], config_of(run_folder), run_folder)
            tuned = with_values(tuned, {**common, **changes}, name=f"{variant}-{seed}")
            cells[variant, seed] = kept(recipe, run_child(tuned, is_isolated=True).unwrap())
            write_cells(results, fields, cells)
    return compared([{variant: cells[variant, seed] for variant in variants} for seed in range(num_seeds)])


def kept(recipe: str, results: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores and seconds to record from a run's results."""
    return {key: results[key] for key in (*KEYS[recipe], *SPENT)}


def settings() -> dict[str, Any]:
    """Return the settings that all runs share and those of each recipe, without paths and seeds.

    The corpus is identified by its frames: encoders of other versions write other bytes.
    """
    base, frames = presets.tiny(), run_files.read_json(CORPUS)["content_hash"]
    recipes = {recipe: fine_tuning(known_recipes()[recipe], base, "RUN") for recipe, _ in VARIANTS.values()}
    fields = {name: identity(config, frames) for name, config in ({"pretrain": base} | recipes).items()}
    words = {
        name: [recipe, *(word for field, value in changes.items() for word in option(field, value))]
        for name, (recipe, changes) in VARIANTS.items()
    }
    return flat(fields) | {f"variant.{name}": variant for name, variant in words.items()}


def compared(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return the scores of each variant over seeds, and the differences between variants, seed by seed."""

    def of(variant: str, key: str) -> np.ndarray:
        return np.array([row[variant][key] for row in rows])

    def spread(values: np.ndarray) -> dict[str, Any]:
        return over_seeds(values.tolist())

    closed = {key: gap_closed(of("qa", key), of("qa-question-only", key)) for key in KEYS["tiny_qa"]}
    recipes = {ZERO_SHOT: "tiny_retrieval"} | {variant: recipe for variant, (recipe, _) in VARIANTS.items()}
    return {
        "retrieval_gain": float((of("retrieval", R1) - of(ZERO_SHOT, R1)).mean()),
        "qa_gap_closed": float(closed[ACCURACY].mean()),
        "multiple_choice": float(of("multiple-choice", RANDOM).mean()),
        "multiple_choice_hard": float(of("multiple-choice", HARD).mean()),
        "differences": {name: spread(of(a, key) - of(b, key)) for name, (a, b, key) in DIFFERENCES.items()},
        "qa_gap_closed_by_kind": {key: spread(values) for key, values in closed.items()},
        "scores": {
            variant: {key: spread(of(variant, key)) for key in KEYS[recipe]} for variant, recipe in recipes.items()
        },
        "seconds": {variant: spread(np.sum([of(variant, part) for part in SPENT], axis=0)) for variant in recipes},
    }


def gap_closed(reached: np.ndarray, question_only: np.ndarray) -> np.ndarray:
    """Return the share of the gap closed between a model that sees no video and the corpus's ceiling, which is 1 for
    each kind."""
    return (reached - question_only) / (1 - question_only)
