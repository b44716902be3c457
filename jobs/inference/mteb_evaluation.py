"""Score a model on a retrieval task of `mteb` and write its card: `snps3 evaluate RUN --mteb TASK`."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

from jobs.evaluation.cards import Protocol
from jobs.evaluation.mteb_cards import MtebCard, write_card
from jobs.evaluation.scoring import EvaluateConfig, count_overlap, log_fields, refuse_given, refuse_overlap
from jobs.inference.model import folder_to_score
from jobs.inference.mteb_model import Direction, MtebModel, retrieval_task
from jobs.run import run_files
from jobs.run.config import DataConfig, Placement
from jobs.run.fields import as_dict, config_hash
from jobs.run.run_identity import config_of
from jobs.tracking import machine
from pipeline import storage
from pipeline.nearest import did_you_mean

MANIFEST_TASKS: dict[str, Direction] = {"ManifestT2V": "t2v", "ManifestV2T": "v2t"}
"""Tasks of mteb's shape with the clips of a manifest."""
KEPT = ("recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_10", "map_at_10", "mrr_at_10")
"""Scores on the card, beside the task's main score."""
WITHOUT_EFFECT = ("task", "questions", "queries", "rerank", "fusion", "dual_softmax", "num_frames", "max_clips", "card")


def evaluate_with_mteb(config: EvaluateConfig) -> MtebCard:
    """Score a model as `config.mteb` says and return the card. ValueError if mteb, the task or its data is missing."""
    refuse_given(config, WITHOUT_EFFECT, "has no effect with --mteb")
    if not config.run:
        raise ValueError("name the folder of a run or of an exported model")
    if importlib.util.find_spec("mteb") is None:
        raise ValueError(f"--mteb {config.mteb} needs mteb, which is not installed: pip install 'snps3-ray[mteb]'")
    folder = folder_to_score(config.run, config.out)
    run = config_of(folder)
    assert config.mteb
    overlap: Mapping[str, int | None] = dict.fromkeys(("train", "validation"))
    if config.mteb in MANIFEST_TASKS:
        manifest = storage.absolute(config.manifest or run.data.manifest)
        split = config.split or run.data.test_split
        overlap = overlap_of(config, run.data, Protocol(task="retrieval", run=folder, manifest=manifest, split=split))
        task = retrieval_task(manifest, split, MANIFEST_TASKS[config.mteb])
    else:
        refuse_given(config, ("manifest", "split"), f"has no effect with --mteb {config.mteb}")
        task = find_task(config.mteb)
        load_data(task)
    device = "cuda" if config.placement.use_gpu else "cpu"
    card = score(MtebModel(folder, device=device), run.seed, task, overlap)
    place = write_card(card, storage.absolute(config.out) if config.out else f"{folder}/evaluation")
    print(f"card: {place}")
    log(card, run.name, config.placement)
    return card


def overlap_of(config: EvaluateConfig, data: DataConfig, protocol: Protocol) -> Mapping[str, int | None]:
    """Return how many scored clips are in the run's `train` and `validation` split, None where that is not known.

    Raise ValueError if there are some and no option allows them.
    """
    path = f"{protocol.run}/{run_files.IDENTITY}"
    if not storage.exists(path):
        return dict.fromkeys(("train", "validation"))
    overlap = count_overlap(data, protocol, run_files.read_json(path)["fields"]["data.manifest_hash"])
    refuse_overlap(config, data, protocol, overlap, None)
    return overlap


def is_text_video_retrieval(metadata: Any) -> bool:
    """Return whether a task of mteb asks for videos by texts, or the reverse, on one split in one language."""
    return (
        metadata.type == "Any2AnyRetrieval"
        and metadata.category in ("t2v", "v2t")
        and set(metadata.modalities) == {"text", "video"}
        and len(metadata.eval_splits) == 1
        and not metadata.is_multilingual
    )


def find_task(name: str) -> Any:
    """Return the task of mteb with this name. ValueError if there is none, or if it is no retrieval of texts and
    videos."""
    from mteb.get_tasks import _TASKS_REGISTRY  # pyright: ignore[reportMissingImports]

    tasks = {key: kind for key, kind in _TASKS_REGISTRY.items() if is_text_video_retrieval(kind.metadata)}
    if name in tasks:
        return tasks[name]()
    known = sorted([*tasks, *MANIFEST_TASKS])
    what = "is no task of mteb" if name not in _TASKS_REGISTRY else "is a task of mteb, but no text-video retrieval"
    raise ValueError(
        f"--mteb {name} {what}; {did_you_mean(name, known) or 'name one of them'} (tasks: {', '.join(known)})"
    )


def load_data(task: Any) -> None:
    """Load the data set of a task. ValueError if it cannot be reached."""
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    try:
        task.load_data()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the data set of {task.metadata.name}, {path} at {revision}, is not cached and cannot be reached "
            f"({type(error).__name__}); where the hub can be reached, run hf download {path} --repo-type dataset "
            f"--revision {revision}, and set HF_HOME here to that cache"
        ) from error


def score(model: MtebModel, run_seed: int, task: Any, overlap: Mapping[str, int | None]) -> MtebCard:
    """Return the card of the model of a run on a loaded task. `overlap`: scored clips by split of the run."""
    import mteb  # pyright: ignore[reportMissingImports]

    metadata = task.metadata
    (split,) = metadata.eval_splits
    data = task.dataset["default"][split]
    num_queries, num_found = len(data["queries"]), len(data["corpus"])
    asks_by_text = metadata.category == "t2v"
    (result,) = mteb.evaluate(
        model, task, cache=None, co2_tracker=False, encode_kwargs={"show_progress_bar": False}, show_progress_bar=False
    ).task_results
    (scores,) = result.scores[split]
    return MtebCard(
        task=metadata.name,
        direction=metadata.category,
        split=split,
        mteb=importlib.metadata.version("mteb"),
        dataset=metadata.dataset["path"],
        dataset_revision=metadata.dataset["revision"],
        run=model.folder,
        weights=run_files.weights_hash(model.folder),
        run_seed=run_seed,
        num_frames=model.model.data.num_frames,
        frame_size_px=model.model.data.frame_size_px,
        num_queries=num_queries,
        num_videos=num_found if asks_by_text else num_queries,
        num_texts=num_queries if asks_by_text else num_found,
        num_trained_on=overlap["train"],
        num_selected_on=overlap["validation"],
        main_score=metadata.main_score,
        scores={name: float(scores[name]) for name in dict.fromkeys((*KEPT, metadata.main_score))},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        hardware=machine.hardware(),
        commit=machine.git_commit(),
    )


def log(card: MtebCard, run_name: str, placement: Placement) -> None:
    """Log the card as an MLflow run."""
    fields = as_dict(card)
    identity = config_hash({key: fields[key] for key in ("task", "mteb", "dataset_revision", "weights")})
    log_fields(fields, f"{run_name}/mteb-{card.task}", identity, placement)
