"""Recipes of fine-tuning as values; `fine_tuning` makes a new run of a pre-trained run and a recipe.

The new run has the network, the vocabulary and the weights of the pre-trained one; the recipe sets task and schedule.
`jobs/run/datasets.py` has the recipes of each data set.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.run.config import (
    DataConfig,
    OptimConfig,
    Placement,
    PretrainConfig,
    SelectionConfig,
    TaskConfig,
)
from jobs.run.run_files import best_weights
from pipeline.stream.config import MixingConfig
from snps3_model.config import ObjectiveConfig
from snps3_model.loss_table import LOSSES

MOST_PX = 448
"""Maximum long side of whole frames, in px."""
ACCURACY = "validation/accuracy"
CORPORA = "corpora"
"""Folder of the prepared corpora, relative to the working directory of the commands."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Changes to a run for fine-tuning on a task of a data set.

    With `corpus` set, the paper's fine-tuning (§5): 16 frames, 32 clips per step, no warm-up, one drop of the rate.
    Unlike in the published code, the checkpoint is selected on the split `val`.
    """

    name: str
    title: str
    """One sentence, for the command line."""
    task: Literal["captions", "question_answering", "multiple_choice"] = "captions"
    corpus: str | None = None
    """Folder below `corpora/`; None: the corpus of the run itself, with a short schedule on two cores."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of questions by dataset of the run, below the folder of the corpus."""
    task_fields: Mapping[str, int] = field(default_factory=dict)
    """Other fields of TaskConfig."""
    num_steps: int = 25_000
    decay_step: int = 15_000
    """Step at which the rate drops to a tenth; without `corpus`, the run keeps its decay."""
    lr: float = 1e-5
    num_evaluations: int = 10
    """Evaluations on the validation split, evenly spaced."""
    max_tokens: int | None = None
    """Longest caption in tokens; None: as in the run."""

    @property
    def is_retrieval(self) -> bool:
        """Return whether the task is retrieval."""
        return self.task == "captions"


def fine_tuning(recipe: Recipe, run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Return the run that starts from weights, vocabulary and significant words of `run` and is trained by `recipe`.

    ValueError if the network of `run` does not allow it.
    """
    corpus = f"{CORPORA}/{recipe.corpus}" if recipe.corpus else corpus_folder(run.data.manifest)
    optim = optim_of(recipe, run.optim)
    task: dict[str, Any] = {dataset: f"{corpus}/{file}" for dataset, file in recipe.files.items()}
    task |= recipe.task_fields
    # on a published corpus, a run evaluates in two stages and reranks the top 100; jobs/evaluate.py scores all pairs
    rerank = 100 if recipe.corpus else run.selection.rerank
    selection: dict[str, Any] = {"rerank": rerank} if recipe.is_retrieval else {"metric": ACCURACY}
    return dataclasses.replace(
        run,
        name=recipe.name.replace("_", "-"),
        data=paper_data(recipe, run.data) if recipe.corpus else run.data,
        text=dataclasses.replace(
            run.text,
            vocabulary=f"{run_folder}/tokenizer.json",
            significant_words=f"{run_folder}/significant_words.json",
            word_families=None,
            max_tokens=recipe.max_tokens or run.text.max_tokens,
        ),
        model=dataclasses.replace(
            run.model,
            visual=dataclasses.replace(run.model.visual, pretrained=None),
            pretrained_text=None,
            initial_weights=best_weights(run_folder),
        ),
        objective=matching(run.objective) if recipe.is_retrieval else run.objective,
        task=TaskConfig(kind=recipe.task, **task),
        optim=optim,
        selection=SelectionConfig(evaluate_every=recipe.num_steps // recipe.num_evaluations, **selection),
        placement=fitting(run.placement, optim.global_batch),
    )


def matching(objective: ObjectiveConfig) -> ObjectiveConfig:
    """Return the losses of retrieval: both levels of GVTM, on unmasked captions."""
    weights: Any = {loss.name: 0.0 for loss in LOSSES if not loss.is_kept_for_retrieval}
    return dataclasses.replace(objective, **weights, matching_text="raw", extra=(), dual_share=0.0)


def optim_of(recipe: Recipe, optim: OptimConfig) -> OptimConfig:
    """Return AdamW as in pre-training, with the schedule of the recipe."""
    optim = dataclasses.replace(optim, num_steps=recipe.num_steps, num_epochs=None, lr=recipe.lr, hold_share=0.0)
    if recipe.corpus is None:
        return dataclasses.replace(optim, warmup_steps=recipe.num_steps // 10)
    optim = dataclasses.replace(optim, global_batch=32, weight_decay=1e-4, warmup_steps=0)
    return dataclasses.replace(optim, decay="step", decay_step=recipe.decay_step, decay_epoch=None)


def paper_data(recipe: Recipe, data: DataConfig) -> DataConfig:
    """Return data of the recipe's corpus with 16 frames: crops as in the run, else whole frames of at most `MOST_PX`.

    Question answering does not vary their size.
    """
    data = dataclasses.replace(
        data,
        manifest=f"{CORPORA}/{recipe.corpus}/manifest.parquet",
        train_split="train",
        validation_split="val",
        test_split="test",
        temporal_split=None,
        num_frames=16,
        mixing=MixingConfig(),
    )
    if data.augmentation.crop_px:
        return data
    sides = () if recipe.task == "question_answering" else data.augmentation.long_sides_px
    augmentation = dataclasses.replace(data.augmentation, long_sides_px=tuple(px for px in sides if px <= MOST_PX))
    return dataclasses.replace(data, frame_size_px=min(data.frame_size_px, MOST_PX), augmentation=augmentation)


def fitting(placement: Placement, global_batch: int) -> Placement:
    """Return a placement whose number of workers divides `global_batch`. An elastic one is returned unchanged."""
    if placement.fewest_workers < placement.most_workers:
        return placement
    return dataclasses.replace(placement, num_workers=math.gcd(placement.most_workers, global_batch))


def corpus_folder(manifest: str) -> str:
    """Return the folder of the embedded corpus, whose manifest is in a subfolder."""
    return manifest.rpartition("/")[0].rpartition("/")[0]
