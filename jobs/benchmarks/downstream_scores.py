"""What fine-tuning and two-stage retrieval give: `downstream` and `two-stage` of `python jobs/benchmark.py`."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch

from cluster.run import WORKER_ENVIRONMENT
from jobs.command_line.parsing import option
from jobs.experiments.cells import read_cells, write_cells
from jobs.experiments.child_runs import run_child
from jobs.experiments.statistics import over_seeds
from jobs.inference.model import Model, Videos, decode, load
from jobs.run import presets, run_files
from jobs.run.datasets import known_recipes
from jobs.run.fields import flat
from jobs.run.recipes import fine_tuning
from jobs.run.run_identity import config_of, identity, with_values
from jobs.tasks import retrieval
from jobs.tasks.retrieval import Queries, Scored, highest, reranked
from pipeline.records import Kind
from pipeline.storage import absolute
from pipeline.stream.loader import split_rows
from snps3_model.metrics import bootstrap_intervals, placements, recalls_at

KS = (10, 20, 50, 100, 200, 500)
CLIPS_AT_ONCE = 64
T = TypeVar("T")


def two_stage(
    run: str = "runs/benchmark/main-job",
    folder: str = "corpora/benchmark",
    num_clips: int = 1000,
    num_frames: int = 16,
    k: int = 100,
) -> dict[str, Any]:
    """Time and R@1 of text-to-video retrieval whose first k clips the cross encoder orders, against all clips.

    `total` is everything after decoding: encoding videos and texts, and scoring. Measured in a process with the
    environment of those that jobs/evaluate.py measures in.
    """
    os.environ |= WORKER_ENVIRONMENT
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(both_stages, run, folder, num_clips, num_frames, k).result()


def both_stages(run: str, folder: str, num_clips: int, num_frames: int, k: int) -> dict[str, Any]:
    """What `two_stage` measures."""
    model = load(run)
    manifest = many_tests(Path(folder), num_clips)
    rows = split_rows(manifest, "test")[Kind.VIDEO].slice(0, num_clips).to_pylist()
    paths, texts = [row["uri"] for row in rows], [row["captions"][0] for row in rows]
    data = dataclasses.replace(model.config.data, num_frames=num_frames)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        frames = list(pool.map(partial(decode, data=data), paths, chunksize=50))
    relevant = retrieval.true_of(texts, [[text] for text in texts])
    videos, video_seconds = timed(lambda: encoded(model, frames))
    queries, text_seconds = timed(lambda: model.embed_texts(texts))
    found: dict[int, tuple[np.ndarray, float]] = {}
    for count in (num_clips, *KS):
        scores, seconds = timed(partial(scored_in_two_stages, model, queries, videos, count))
        found[count] = (recalls_at(1, placements(scores, relevant)), seconds)
    exhaustive, all_seconds = found[num_clips]
    encoding = video_seconds + text_seconds
    curve = [
        {
            "k": count,
            "r1": float(hits.mean()),
            "difference": float((hits - exhaustive).mean()),
            "difference_interval": bootstrap_intervals((hits - exhaustive)[:, None], np.ones(len(hits)))[:, 0].tolist(),
            "scoring_seconds": seconds,
            "scoring_speedup": all_seconds / seconds,
            "total_speedup": (all_seconds + encoding) / (seconds + encoding),
        }
        for count, (hits, seconds) in sorted(found.items())
    ]
    chosen = next(point for point in curve if point["k"] == k)
    return {
        "r1_difference": chosen["difference"],
        "scoring_speedup": chosen["scoring_speedup"],
        "total_speedup": chosen["total_speedup"],
        "r1_exhaustive": float(exhaustive.mean()),
        "seconds_for_videos": video_seconds,
        "seconds_for_texts": text_seconds,
        "num_clips": num_clips,
        "num_frames": num_frames,
        "threads": torch.get_num_threads(),
        "curve": curve,
    }


def many_tests(folder: Path, num_clips: int) -> str:
    """Path of the manifest of an embedded corpus with so many test clips, made if it is not there."""
    from jobs.corpus.preparation import PrepareConfig, prepare
    from pipeline.synthetic.clips import CorpusConfig
    from pipeline.synthetic.corpus import make_corpus

    root = folder / f"embedded-{num_clips}-tests"
    path = root / "manifest" / "manifest.parquet"
    if not path.exists():
        sizes = CorpusConfig(
            num_train_videos=70, num_train_images=10, num_val=8, num_test=num_clips, num_temporal_groups=2
        )
        make_corpus(sizes, root, num_processes=len(os.sched_getaffinity(0)))
        annotations = tuple(sorted(str(file) for file in (root / "annotations").glob("*.jsonl")))
        prepare(PrepareConfig(corpus=root.name, root=str(root), out=str(path.parent), annotations=annotations))
    return str(path)


def encoded(model: Model, frames: list[np.ndarray]) -> Videos:
    """All videos, some at a time."""
    parts = [
        model.embed_frames(np.stack(frames[start : start + CLIPS_AT_ONCE]))
        for start in range(0, len(frames), CLIPS_AT_ONCE)
    ]
    return Videos(tokens=torch.cat([p.tokens for p in parts]), vectors=torch.cat([p.vectors for p in parts]))


def scored_in_two_stages(model: Model, queries: Queries, videos: Videos, k: int) -> np.ndarray:
    """The scores that order the clips of each text: of the cross encoder too for the first k."""
    dual = model.dual_scores(queries, videos).numpy()
    text, clip = np.nonzero(highest(dual, k))
    cross = np.full(dual.shape, np.nan, dual.dtype)
    cross[text, clip] = retrieval.cross_scores(model.network, queries, videos.tokens, text, clip).numpy()
    return reranked(Scored(clip_ids=np.arange(len(videos.vectors)), dual=dual, cross=cross), k)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What `function` gives, and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


# --- fine-tuning --------------------------------------------------------------------------------------------------


SCRATCH, ONE_FRAME, NO_VIDEO = (
    {"model.initial_weights": None},
    {"data.num_frames": 1},
    {"task.is_video_hidden": True},
)
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "retrieval": ("tiny_retrieval", {}),
        "retrieval-scratch": ("tiny_retrieval", SCRATCH),
        "retrieval-one-frame": ("tiny_retrieval", ONE_FRAME),
        "qa": ("tiny_qa", {}),
        "qa-scratch": ("tiny_qa", SCRATCH),
        "qa-question-only": ("tiny_qa", NO_VIDEO),
        "multiple-choice": ("tiny_multiple_choice", {}),
        "multiple-choice-scratch": ("tiny_multiple_choice", SCRATCH),
        "multiple-choice-one-frame": ("tiny_multiple_choice", ONE_FRAME),
    }
)
"""Name → recipe of jobs/finetune.py and fields that are set anew."""
ACCURACY, QUESTION_KINDS = "test/accuracy", ("colour", "shape", "count", "action", "order")
KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tiny_retrieval": ("test/t2v/r1", "test/v2t/r1", "temporal/t2v/group_r1"),
        "tiny_qa": (ACCURACY, *(f"{ACCURACY}/{kind}" for kind in QUESTION_KINDS)),
        "tiny_multiple_choice": (f"{ACCURACY}/random", f"{ACCURACY}/hard"),
    }
)
"""What is shown of each recipe."""
SPENT = ("seconds/step", "seconds/data_wait", "seconds/evaluation")


ZERO_SHOT = "zero-shot"
CORPUS = "corpora/embedded/corpus.json"
RESULTS = "docs/results/downstream.json"


def downstream(storage: str = "runs/benchmark", results: str = RESULTS, num_seeds: int = 3) -> dict[str, Any]:
    """What fine-tuning `tiny` gives on each task of the embedded corpus, and what pre-training adds to it.

    Zero-shot scores are those of the pre-training runs `seed-0` and so on. What came out of each run goes to the file
    `results` as it comes; what stands there is not run again, and runs that are finished in `storage` are read.
    """
    fields = settings()
    cells = read_cells(results, fields)
    for seed in range(num_seeds):
        name, common = f"seed-{seed}", {"seed": seed, "placement.storage": storage}
        if all((variant, seed) in cells for variant in (ZERO_SHOT, *VARIANTS)):
            continue
        pretraining = run_child(with_values(presets.tiny(), common, name=name), is_isolated=True)  # for its weights too
        cells[ZERO_SHOT, seed] = kept("tiny_retrieval", pretraining.unwrap())
        write_cells(results, fields, cells)
        run_folder = absolute(f"{storage}/{name}")
        for variant in [variant for variant in VARIANTS if (variant, seed) not in cells]:
            recipe, changes = VARIANTS[variant]
            tuned = fine_tuning(known_recipes()[recipe], config_of(run_folder), run_folder)
            tuned = with_values(tuned, {**common, **changes}, name=f"{variant}-{seed}")
            cells[variant, seed] = kept(recipe, run_child(tuned, is_isolated=True).unwrap())
            write_cells(results, fields, cells)
    return compared(
        [{variant: cells[variant, seed] for variant in (ZERO_SHOT, *VARIANTS)} for seed in range(num_seeds)]
    )


def kept(recipe: str, results: Mapping[str, Any]) -> dict[str, float]:
    """What is kept of the results of a run."""
    return {key: results[key] for key in (*KEYS[recipe], *SPENT)}


def settings() -> dict[str, Any]:
    """What all the runs have in common, and what is fine-tuned how; paths and seeds left out.

    The corpus counts by its frames: encoders of other versions write other bytes.
    """
    base, frames = presets.tiny(), run_files.read_json(CORPUS)["content_hash"]
    made = {"pretrain": base} | {
        recipe: fine_tuning(known_recipes()[recipe], base, "RUN")
        for recipe in dict.fromkeys(recipe for recipe, _ in VARIANTS.values())
    }
    fields = {recipe: identity(config, frames) for recipe, config in made.items()}
    words = {
        name: [recipe, *(word for field, value in changes.items() for word in option(field, value))]
        for name, (recipe, changes) in VARIANTS.items()
    }
    return flat(fields) | {f"variant.{name}": variant for name, variant in words.items()}


def compared(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Scores of each variant over seeds, and the differences that the variants are for, seed by seed."""

    def of(variant: str, key: str) -> np.ndarray:
        return np.array([row[variant][key] for row in rows])

    def spread(values: np.ndarray) -> dict[str, Any]:
        return over_seeds(values.tolist())

    r1, _, temporal = KEYS["tiny_retrieval"]
    random, hard = KEYS["tiny_multiple_choice"]
    closed = {key: gap_closed(of("qa", key), of("qa-question-only", key)) for key in KEYS["tiny_qa"]}
    recipes = {ZERO_SHOT: "tiny_retrieval"} | {variant: recipe for variant, (recipe, _) in VARIANTS.items()}
    return {
        "retrieval_gain": float((of("retrieval", r1) - of(ZERO_SHOT, r1)).mean()),
        "qa_gap_closed": float(closed[ACCURACY].mean()),
        "multiple_choice": float(of("multiple-choice", random).mean()),
        "multiple_choice_hard": float(of("multiple-choice", hard).mean()),
        "differences": {
            "retrieval over zero-shot": spread(of("retrieval", r1) - of(ZERO_SHOT, r1)),
            "retrieval over scratch": spread(of("retrieval", r1) - of("retrieval-scratch", r1)),
            "temporal over zero-shot": spread(of("retrieval", temporal) - of(ZERO_SHOT, temporal)),
            "temporal over one frame": spread(of("retrieval", temporal) - of("retrieval-one-frame", temporal)),
            "answers over question only": spread(of("qa", ACCURACY) - of("qa-question-only", ACCURACY)),
            "answers over scratch": spread(of("qa", ACCURACY) - of("qa-scratch", ACCURACY)),
            "hard choices over one frame": spread(of("multiple-choice", hard) - of("multiple-choice-one-frame", hard)),
            "hard choices over scratch": spread(of("multiple-choice", hard) - of("multiple-choice-scratch", hard)),
        },
        "qa_gap_closed_by_kind": {key: spread(values) for key, values in closed.items()},
        "scores": {
            variant: {key: spread(of(variant, key)) for key in KEYS[recipe]} for variant, recipe in recipes.items()
        },
        "seconds": {variant: spread(np.sum([of(variant, part) for part in SPENT], axis=0)) for variant in recipes},
    }


def gap_closed(reached: np.ndarray, question_only: np.ndarray) -> np.ndarray:
    """Share of the way from a model that sees no video to the generator's ceiling, which is 1 for every sort."""
    return (reached - question_only) / (1 - question_only)
