"""Fine-tune a pre-trained run on a task: `ray job submit -- python jobs/finetune.py RECIPE --run RUN --name NAME …`.

The network, its vocabulary and the first weights are those of RUN; the recipe says what is learned and how. Every field
can be set anew; from scratch with `--model.initial-weights None`. The same command again goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jobs.run.config import OptimConfig, Placement, PretrainConfig, SelectionConfig, TaskConfig
from jobs.run.run_files import best_weights
from pipeline.stream.config import MixingConfig
from snps3_model.loss_table import LOSSES

MOST_PX = 448
"""Long side of whole frames; question answering sees no smaller ones."""
EMBEDDED_FILES = {"train": "train", "validation": "val", "test": "test", "temporal": "temporal"}
ACCURACY = "validation/accuracy"
MSRVTT_FULL = "msrvtt_full"
"""Corpus of MSR-VTT as its authors split it (6,513, 497 and 2,990 videos), which MSRVTT-QA and MC ask about. That of
retrieval, `msrvtt`, has 1,000 of these test videos as its own and trains on others."""
CHOICES = "msrvtt_multi_choice_qa.jsonl"
"""File of MSRVTT-MC beside that corpus's manifest."""


def from_run(run: PretrainConfig, run_folder: str, **changes: Any) -> PretrainConfig:
    """A configuration that begins where `run` ended, with its words."""
    table = f"{run_folder}/significant_words.json"
    text = dataclasses.replace(
        run.text, vocabulary=f"{run_folder}/tokenizer.json", significant_words=table, word_families=None
    )
    visual = dataclasses.replace(run.model.visual, pretrained=None)
    model = dataclasses.replace(
        run.model, visual=visual, pretrained_text=None, initial_weights=best_weights(run_folder)
    )
    changes = {"task": TaskConfig(), "placement": fitting(run.placement, changes["optim"].global_batch)} | changes
    return dataclasses.replace(run, text=text, model=model, **changes)


def fitting(placement: Placement, global_batch: int) -> Placement:
    """With as many workers as can have equal shares of a step, where the run had more or others."""
    if placement.fewest_workers < placement.most_workers:
        return placement
    return dataclasses.replace(placement, num_workers=math.gcd(placement.most_workers, global_batch))


def matching(run: PretrainConfig) -> Any:
    """The two losses that retrieval is trained with: GVTM of both levels, of captions with all their words."""
    others: dict[str, Any] = {loss.name: 0.0 for loss in LOSSES if not loss.is_kept_for_retrieval}
    return dataclasses.replace(run.objective, **others, matching_text="raw", extra=())


def tiny_optim(run: PretrainConfig, num_steps: int, lr: float) -> OptimConfig:
    """A short schedule on two cores."""
    return dataclasses.replace(run.optim, num_steps=num_steps, num_epochs=None, lr=lr, warmup_steps=num_steps // 10)


def embedded_files(run: PretrainConfig, folder: str) -> dict[str, Any]:
    """What an embedded corpus asks about its clips: in `folder`, beside the manifest's."""
    corpus = embedded_folder(run.data.manifest)
    return {name: f"{corpus}/{folder}/{file}.jsonl" for name, file in EMBEDDED_FILES.items()}


def embedded_folder(manifest: str) -> str:
    """Of the embedded corpus whose manifest this is, in a folder of its own there."""
    return manifest.rpartition("/")[0].rpartition("/")[0]


def tiny_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval on the embedded corpus."""
    return from_run(
        run,
        run_folder,
        name="tiny-retrieval",
        objective=matching(run),
        optim=tiny_optim(run, 240, 1e-3),
        selection=SelectionConfig(evaluate_every=120, rerank=run.selection.rerank),
    )


def tiny_qa(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Question answering on the embedded corpus."""
    return from_run(
        run,
        run_folder,
        name="tiny-qa",
        task=TaskConfig(kind="question_answering", questions_per_clip=5, **embedded_files(run, "questions")),
        optim=tiny_optim(run, 480, 2e-3),
        selection=SelectionConfig(metric=ACCURACY, evaluate_every=160),
    )


def tiny_multiple_choice(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Multiple choice on the embedded corpus, trained with options that differ in one attribute."""
    return from_run(
        run,
        run_folder,
        name="tiny-multiple-choice",
        task=TaskConfig(kind="multiple_choice", **embedded_files(run, "multiple_choice")),
        optim=tiny_optim(run, 480, 2e-3),
        selection=SelectionConfig(metric=ACCURACY, evaluate_every=160),
    )


def paper(
    run: PretrainConfig,
    run_folder: str,
    name: str,
    *,
    num_steps: int,
    decay_step: int,
    lr: float = 1e-5,
    is_scaled: bool = True,
    corpus: str | None = None,
    **changes: Any,
) -> PretrainConfig:
    """What all fine-tuning of the paper has in common (§5): 16 frames, 32 clips a step, no warm-up, one fall of the
    rate, whole frames of 448 px at most, on the corpus that `name` begins with unless it is said. Unlike the published
    code, the checkpoint is chosen on the split `val`."""
    data = dataclasses.replace(
        run.data,
        manifest=f"corpora/{corpus or name.split('-')[0]}/manifest.parquet",
        train_split="train",
        validation_split="val",
        test_split="test",
        temporal_split=None,
        num_frames=16,
        mixing=MixingConfig(),
    )
    if not data.augmentation.crop_px:
        shown = tuple(px for px in data.augmentation.long_sides_px if px <= MOST_PX) if is_scaled else ()
        augmentation = dataclasses.replace(data.augmentation, long_sides_px=shown)
        data = dataclasses.replace(data, frame_size_px=min(data.frame_size_px, MOST_PX), augmentation=augmentation)
    optim = paper_optim(run, num_steps=num_steps, decay_step=decay_step, lr=lr)
    return from_run(run, run_folder, name=name, data=data, optim=optim, **changes)


def paper_retrieval(run: PretrainConfig, run_folder: str, name: str, **schedule: Any) -> PretrainConfig:
    """Retrieval by the two losses of matching. The run measures itself in two stages; jobs/evaluate.py scores all."""
    selection = SelectionConfig(evaluate_every=schedule["num_steps"] // 10, rerank=100)
    return paper(run, run_folder, name, objective=matching(run), selection=selection, **schedule)


def paper_qa(
    run: PretrainConfig, run_folder: str, name: str, *, corpus: str, num_answers: int, **schedule: Any
) -> PretrainConfig:
    """Question answering over so many answers, from `{split}_qa.json` beside the manifest."""
    files: Any = {
        dataset: f"corpora/{corpus}/{split}_qa.json"
        for dataset, split in {"train": "train", "validation": "val", "test": "test"}.items()
    }
    task = TaskConfig(kind="question_answering", num_answers=num_answers, **files)
    selection = SelectionConfig(metric=ACCURACY, evaluate_every=schedule["num_steps"] // 10)
    return paper(run, run_folder, name, corpus=corpus, task=task, selection=selection, is_scaled=False, **schedule)


def msrvtt_multiple_choice(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Multiple choice on MSRVTT-MC, which has a test file only: training and validation draw captions of other clips.
    MSR-VTT's schedule; the paper scores its retrieval checkpoints instead."""
    return paper(
        run,
        run_folder,
        "msrvtt-multiple-choice",
        corpus=MSRVTT_FULL,
        task=TaskConfig(kind="multiple_choice", test=f"corpora/{MSRVTT_FULL}/{CHOICES}"),
        selection=SelectionConfig(metric=ACCURACY, evaluate_every=2500),
        num_steps=25_000,
        decay_step=15_000,
    )


def paper_optim(run: PretrainConfig, *, num_steps: int, decay_step: int, lr: float) -> OptimConfig:
    """AdamW as in pre-training, with the schedule of fine-tuning."""
    return dataclasses.replace(
        run.optim,
        num_steps=num_steps,
        num_epochs=None,
        global_batch=32,
        lr=lr,
        weight_decay=1e-4,
        warmup_steps=0,
        decay="step",
        decay_step=decay_step,
        decay_epoch=None,
    )


def msrvtt_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval on MSR-VTT; its 7K or 9K training split is what the manifest has as `train`."""
    return paper_retrieval(run, run_folder, "msrvtt-retrieval", num_steps=25_000, decay_step=15_000)


def didemo_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval of DiDeMo's videos by paragraphs, which need more than 30 tokens."""
    config = paper_retrieval(run, run_folder, "didemo-retrieval", num_steps=25_000, decay_step=15_000)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, max_tokens=64))


def msvd_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval on MSVD, at a tenth of the rate."""
    return paper_retrieval(run, run_folder, "msvd-retrieval", num_steps=16_000, decay_step=8_000, lr=1e-6)


def lsmdc_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval on LSMDC, with MSR-VTT's schedule: the paper has none for it."""
    return paper_retrieval(run, run_folder, "lsmdc-retrieval", num_steps=25_000, decay_step=15_000)


def activitynet_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval of ActivityNet's videos by paragraphs, with DiDeMo's schedule: the paper has none for it."""
    config = paper_retrieval(run, run_folder, "activitynet-retrieval", num_steps=25_000, decay_step=15_000)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, max_tokens=128))


def vatex_retrieval(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Retrieval on VATEX, with MSR-VTT's schedule: the paper has none for it."""
    return paper_retrieval(run, run_folder, "vatex-retrieval", num_steps=25_000, decay_step=15_000)


def msrvtt_qa(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Question answering on MSRVTT-QA over 1,500 answers."""
    schedule = {"num_steps": 25_000, "decay_step": 15_000}
    return paper_qa(run, run_folder, "msrvtt-qa", corpus=MSRVTT_FULL, num_answers=1500, **schedule)


def msvd_qa(run: PretrainConfig, run_folder: str) -> PretrainConfig:
    """Question answering on MSVD-QA over 1,000 answers."""
    schedule = {"num_steps": 18_000, "decay_step": 10_000}
    return paper_qa(run, run_folder, "msvd-qa", corpus="msvd", num_answers=1000, **schedule)


RECIPES: Mapping[str, Callable[[PretrainConfig, str], PretrainConfig]] = MappingProxyType(
    {
        recipe.__name__: recipe
        for recipe in (
            tiny_retrieval,
            tiny_qa,
            tiny_multiple_choice,
            msrvtt_retrieval,
            didemo_retrieval,
            msvd_retrieval,
            lsmdc_retrieval,
            activitynet_retrieval,
            vatex_retrieval,
            msrvtt_qa,
            msvd_qa,
            msrvtt_multiple_choice,
        )
    }
)
