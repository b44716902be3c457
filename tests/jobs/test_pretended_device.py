"""Every preset, loss and task on a pretended device: no step waits for it or mixes its tensors with the host's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batches import MASK, MAX_TOKENS, PAD, SEP, random_batch
from pretended_device import DEVICE, DeviceError, on_device
from torch import Tensor

from cluster.world import World
from jobs.run.config import OptimConfig, Precision
from jobs.run.presets import PRESETS, tiny
from jobs.tasks import retrieval
from jobs.tasks.choices import ChoiceTask
from jobs.tasks.network import Network, NetworkOptions
from jobs.tasks.questions import QuestionTask
from jobs.tasks.task import Evaluation
from jobs.tasks.text import TextProcessor
from jobs.training.step import TrainState, make_state, train_step
from pipeline.corpus.questions import Choice, ClipQuestions, Question
from pipeline.records import Batch, ClipRows
from pipeline.stream.lengths import group_by_length
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig, reference_objective
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

VOCABULARY_SIZE = 60
SMALLER = {"pvt_v2_b2": "pvt_v2_b0", "video_swin_small": "video_swin_tiny"}
CNN, PVT, SWIN = (VisualConfig(encoder=name) for name in ("small_cnn", "pvt_v2_b0", "video_swin_tiny"))
Case = tuple[VisualConfig, ObjectiveConfig, Precision, dict[str, Any], dict[str, int]]


def of_preset(name: str) -> Case:
    """The encoder's family, the losses and the precision of a preset."""
    config = PRESETS[name][1]()
    encoder = SMALLER.get(config.model.visual.encoder, config.model.visual.encoder)
    visual = dataclasses.replace(config.model.visual, encoder=encoder, pretrained=None, channels=(4, 6))
    return visual, config.objective, config.optim.precision, {}, {"length_groups": 2}


def checkpointed(visual: VisualConfig) -> VisualConfig:
    return dataclasses.replace(visual, activation_checkpointing=True)


HARD = ObjectiveConfig(num_hard_negatives=2, negative_spread=1.0, learn_temperature=True)
ITM = ObjectiveConfig(itm=1.0, itm_negative="hard", lvwm_stage="both", sigmoid=1.0)
ORDER = ObjectiveConfig(clip_order=1.0, mining="nearest", reweight_easy=True, frames="middle")
PUBLISHED = reference_objective(queue_length=32)
TOP_K = ObjectiveConfig(mining="top_k", text_alone="raw", matching_text="masked", attentive_share=0.5)
CASES: dict[str, Case] = {
    **{name: of_preset(name) for name in PRESETS},
    "pvt, hard, grid": (PVT, HARD, "bf16", {"grid_side": 2}, {}),
    "pvt, itm, chunks": (checkpointed(PVT), ITM, "fp32", {}, {"rows_at_once": 3}),
    "swin, published, chunks": (
        checkpointed(SWIN),
        reference_objective(queue_length=32),
        "tf32",
        {},
        {"rows_at_once": 4},
    ),
    "cnn, order, in time": (CNN, ORDER, "bf16", {"num_temporal_layers": 1}, {"length_groups": 3}),
    "cnn, top k, P3E, grid": (CNN, TOP_K, "fp32", {"cross_network": "separate", "grid_side": 2}, {}),
    "cnn, itm, P3E": (CNN, ITM, "bf16", {"cross_network": "separate", "num_cross_layers": 1}, {"length_groups": 2}),
}
"""Encoder, losses, precision, fields of the model, and how the batch passes through it: all presets, then pairs."""


def small_model(visual: VisualConfig, **fields: Any) -> SNPS3:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "num_layers": 2, "num_heads": 2, "feed_forward": 32, "max_positions": 40}
    config = ModelConfig(visual=visual, initial_std=0.25, **sizes, **fields)
    return SNPS3(config, vocabulary_size=VOCABULARY_SIZE, pad_id=PAD, separator_id=SEP)


def batch_of_32_px(length_groups: int) -> Batch:
    batch = dataclasses.replace(random_batch(6, empty=(2,)), max_masked=3, max_tokens=MAX_TOKENS)
    frames, pad_mask = batch.frames.repeat(1, 1, 4, 4, 1), batch.frame_pad_mask.repeat(1, 1, 4, 4)
    groups = group_by_length(batch.token_mask.sum(1).tolist(), length_groups) if length_groups > 1 else ()
    return dataclasses.replace(batch, frames=frames, frame_pad_mask=pad_mask, length_groups=groups)


def fused_state(network: Network, precision: Precision) -> tuple[TrainState, OptimConfig]:
    optim = OptimConfig(precision=precision, average_decay=0.9)
    state = make_state(network, network, optim)
    for group in state.optimizer.param_groups:
        group["fused"] = True  # as on a GPU, where the number of the step lies on the device
    return state, optim


def tensors_of(state: TrainState, batch: Batch) -> list[Tensor]:
    assert state.average
    network = state.network
    return [*network.parameters(), *network.buffers(), *batch.tensors(), *state.average.values.values()]


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_its_device_or_mixes_devices(name: str) -> None:
    visual, objective, precision, fields, passes = CASES[name]
    batch, rows_at_once = batch_of_32_px(passes.get("length_groups", 1)), passes.get("rows_at_once")
    network = Pretraining(small_model(visual, **fields), objective, mask_id=MASK, rows_at_once=rows_at_once)
    network.gather = lambda rows: torch.cat([rows, rows])  # as of two ranks
    state, optim = fused_state(network, precision)  # pyright: ignore[reportArgumentType]
    with on_device(tensors_of(state, batch)):
        metrics = train_step(state, batch, optim, seed=0, rank=0)
        assert {value.device for value in metrics.values()} == {DEVICE}


CAPTIONS = [f"the {colour} square moves {place}" for colour in ("red", "blue", "green") for place in ("up", "down")]


def about_each_clip(asked: Any) -> dict[str, ClipQuestions[Any]]:
    return dict.fromkeys(("train", "test"), ClipQuestions(by_clip=dict.fromkeys(range(6), (asked,)), missing=()))


QUESTIONS = about_each_clip(Question(question_id="q", clip_name="0", text="what moves ?", answers=("square",)))
CHOICES = about_each_clip(Choice(question_id="c", clip_name="0", options=tuple(CAPTIONS[:5]), answer=0))
ANSWERS = ("square", "circle")
TASKS = {
    "questions": QuestionTask(questions=QUESTIONS, answers=ANSWERS),
    "answers": QuestionTask(questions=QUESTIONS, answers=ANSWERS, is_multi_label=True, questions_per_clip=2),
    "choices": ChoiceTask(questions=CHOICES),
}


@pytest.fixture(scope="module")
def text() -> TextProcessor:
    tokenizer = train_wordpiece([*CAPTIONS, "what moves ?"], VOCABULARY_SIZE)
    table = mine_significant_words(CAPTIONS, tokenizer.pieces)
    return TextProcessor(tokenizer=tokenizer, table=table, text=tiny().text, masking=tiny().masking, seed=0)


def clips(rejected: tuple[int, ...] = (2,)) -> ClipRows:
    frames = np.random.default_rng(0).integers(0, 256, (6, 2, 8, 8, 3), np.uint8)
    return ClipRows(
        clip_ids=np.arange(6),
        weight=np.array([row not in rejected for row in range(6)], np.float32),
        epoch=0,
        captions=CAPTIONS,
        frames=frames,
        frame_pad_mask=np.zeros(frames.shape[:4], bool),
        num_frames=np.full(6, 2),
    )


@pytest.mark.parametrize("name", TASKS)
def test_no_step_of_a_task_waits(name: str, text: TextProcessor) -> None:
    task = TASKS[name]
    state, optim = fused_state(task.network(small_model(CNN), NetworkOptions()), "bf16")
    batch = dataclasses.replace(task.batch(clips(), text), max_tokens=MAX_TOKENS)
    with on_device(tensors_of(state, batch)):
        train_step(state, batch, optim, seed=0, rank=0)


def retrieval_waits(text: TextProcessor, num_batches: int) -> list[str]:
    """What a host waits for in all of a retrieval, of which the scores must reach it in the end."""
    model, batch, world, waits = small_model(CNN), text.batch(clips()), World(0, 1, DEVICE), []
    ids, mask = text.tokens(CAPTIONS)
    counts: list[Tensor] = []

    def count(batch: Batch, tokens: Tensor) -> None:
        counts.append(retrieval.masked_words_right(model, batch, tokens))

    with on_device([*model.parameters(), *model.buffers(), *batch.tensors(), ids, mask], waits):
        gallery = retrieval.encode_clips(model, [batch] * num_batches, world.gather, [count])
        queries = retrieval.encode_texts(model, ids, mask, world)
        scored = retrieval.score(model, queries, gallery, world, temperature=0.05)
        retrieval.share_right(counts, world.gather)
    assert scored.cross.shape == (len(CAPTIONS), 5 * num_batches)
    return waits


def test_retrieval_waits_as_often_for_three_batches_as_for_one(text: TextProcessor) -> None:
    assert retrieval_waits(text, 3) == retrieval_waits(text, 1)


def answering_waits(name: str, text: TextProcessor, num_batches: int) -> list[str]:
    """What a host waits for while a task's questions are answered."""
    task, world, waits = TASKS[name], World(0, 1, DEVICE), []
    network, batch = task.network(small_model(CNN), NetworkOptions()), text.batch(clips())
    batches = [batch] * num_batches
    with on_device([*network.parameters(), *network.buffers(), *batch.tensors()], waits):
        case = Evaluation(name="test", batches=batches, source=None, network=network, text=text, world=world)  # type: ignore[arg-type]
        assert len(task.predictions(case)) == 5 * num_batches
    return waits


@pytest.mark.parametrize("name", ["questions", "choices"])
def test_answers_to_three_batches_are_waited_for_as_often_as_to_one(name: str, text: TextProcessor) -> None:
    assert answering_waits(name, text, 3) == answering_waits(name, text, 1)


class Planted(torch.autograd.Function):
    """Hands its input on, and does what it should not in one of the passes."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, wait: Callable[[Tensor], object], when: str) -> Tensor:
        ctx.wait = wait if when == "backward" else None
        if when == "forward":
            wait(loss)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.wait:
            ctx.wait(gradients[0])
        return gradients[0], None, None


FAULTS: dict[str, Callable[[Tensor], object]] = {
    "value": lambda x: x.item(),
    "truth": lambda x: bool(x > 0),
    "list": lambda x: x.tolist(),
    "copy to the host": lambda x: x.cpu(),
    "copy to the host by name": lambda x: x.to("cpu"),
    "constant": lambda x: torch.tensor(2.0) * x,
    "constant copied": lambda x: torch.tensor(2.0, device=x.device) * x,
    "zeros of the host": lambda x: x + torch.zeros(3),
    "numbers of the host": lambda x: x + torch.from_numpy(np.ones(2, np.float32)).to(x.device),
    "mask": lambda x: x[None][x[None] > 0],
    "nonzero": lambda x: (x > 0).nonzero(),
}


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_wait_or_mixture_is_caught_in_both_passes(name: str, when: str) -> None:
    weight = torch.ones((), requires_grad=True)
    with on_device([weight]), pytest.raises(DeviceError):
        Planted.apply(weight * 2.0, FAULTS[name], when).backward()  # type: ignore[union-attr]
