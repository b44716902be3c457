"""The train loop: it learns, it goes on to the bit after a stop, and its rate follows the schedule."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import CLS, FIRST_WORD, MASK, NUM_FRAMES, NUM_WORDS, SEP, SIZE_PX, random_batch, tiny_network
from torch import Tensor

from cluster.world import World
from jobs.run import run_files
from jobs.run.config import OptimConfig, Placement, PretrainConfig
from jobs.training import checkpoints
from jobs.training.checkpoints import Progress
from jobs.training.ema import WeightAverage, averaged
from jobs.training.optimizer import learning_rate
from jobs.training.precision import is_evaluated_in_bf16, set_float32_precision
from jobs.training.reporting import Meter
from jobs.training.step import (
    Clock,
    TrainState,
    make_state,
    non_finite,
    non_finite_error,
    save_checkpoint,
    train_step,
    training_steps,
)
from pipeline.records import IGNORED_LABEL, Batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig
from snps3_model.objective import Pretraining
from snps3_model.snps3 import dual_scores

CONFIG = PretrainConfig(
    name="x",
    seed=4,
    optim=OptimConfig(num_steps=6, global_batch=6, warmup_steps=2),
    placement=Placement(num_workers=1),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new_state(*, seed: int = 0, dropout: float = 0.1, config: PretrainConfig = CONFIG) -> TrainState:
    network = tiny_network(config.objective, seed=seed, dropout=dropout, dtype=torch.float32)
    return make_state(network, network, config.optim)


def batches(first: int = 0) -> Iterator[Batch]:
    """An endless stream of six clips each, some of weight 0."""
    while True:
        yield random_batch(6, seed=first, empty=(first % 6,))
        first += 1


def run_to(state: TrainState, stop: int) -> list[dict[str, Tensor]]:
    """The metrics of the steps up to `stop`, on the batches of these steps."""
    first = state.progress.step
    steps = training_steps(state, batches(first), CONFIG.optim, seed=CONFIG.seed, rank=0, clock=Clock())
    return [metrics for metrics, _ in itertools.islice(steps, stop - first)]


def assert_equal(first: object, second: object) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def assert_same_state(first: TrainState, second: TrainState) -> None:
    assert_equal(dict(first.network.state_dict()), dict(second.network.state_dict()))
    assert_equal(first.optimizer.state_dict(), second.optimizer.state_dict())
    assert first.progress == second.progress
    if first.average and second.average:
        assert_equal(first.average.values, second.average.values)


@pytest.mark.parametrize(("decay", "dual_share"), [(None, 0.0), (0.9, 0.0), (None, 0.4), (0.9, 0.8)])
def test_three_steps_a_stop_and_three_more_are_six_steps_to_the_bit(
    tmp_path: Path, decay: float | None, dual_share: float
) -> None:
    config = dataclasses.replace(
        CONFIG,
        optim=dataclasses.replace(CONFIG.optim, average_decay=decay),
        objective=dataclasses.replace(CONFIG.objective, dual_share=dual_share),
    )
    whole = new_state(config=config)
    metrics = run_to(whole, 6)
    before = new_state(config=config)
    run_to(before, 3)
    checkpoints.save(str(tmp_path), before.network, before.optimizer, before.progress, before.average)
    after = new_state(seed=9, config=config)
    after.progress = checkpoints.load(str(tmp_path), after.network, after.optimizer, after.average)
    torch.manual_seed(123)
    resumed = run_to(after, 6)
    assert_equal(resumed, metrics[3:])
    assert_same_state(after, whole)


def test_the_average_is_the_weighted_sum_of_all_earlier_weights() -> None:
    network = torch.nn.Linear(2, 1)
    history = [network.weight.detach().clone()]
    average = WeightAverage(network, 0.5)
    decays = [min(0.5, (1 + step) / (10 + step)) for step in range(1, 13)]
    for step in range(1, 13):
        torch.nn.init.normal_(network.weight)
        history.append(network.weight.detach().clone())
        average.update(network, step)
    shares = [math.prod(decays[rank:]) * (1 - decays[rank - 1] if rank else 1) for rank in range(13)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight for share, weight in zip(shares, history, strict=True))
    torch.testing.assert_close(average.values["weight"], expected)


def test_averages_stand_in_for_the_weights_for_a_while_only() -> None:
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, average_decay=0.9))
    state = new_state(config=config)
    assert state.average
    run_to(state, 3)
    own = copy.deepcopy(state.network.state_dict())
    with averaged(state.network, state.average):
        inside = copy.deepcopy(state.network.state_dict())
    assert_equal(dict(inside), state.average.values)
    assert_equal(dict(state.network.state_dict()), dict(own))
    assert all(
        (inside[name] != own[name]).any() for name in ("model.similarity.1.weight", "model.visual.norms.0.running_mean")
    )


def test_a_step_depends_on_seed_step_and_rank_and_on_no_other_generator() -> None:
    def losses(outside: int, rank: int = 0, seed: int = CONFIG.seed) -> float:
        torch.manual_seed(outside)
        return train_step(new_state(), random_batch(6), CONFIG.optim, seed=seed, rank=rank)["loss/total"].item()

    assert losses(1) == losses(2)
    assert len({losses(1), losses(1, rank=1), losses(1, seed=5)}) == 3


def test_bfloat16_is_near_single_precision_and_keeps_weights_in_it() -> None:
    half = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, precision="bf16"))
    full, rounded = new_state(dropout=0.0), new_state(dropout=0.0)
    expected = train_step(full, random_batch(6), CONFIG.optim, seed=CONFIG.seed, rank=0)
    found = train_step(rounded, random_batch(6), half.optim, seed=CONFIG.seed, rank=0)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=0.1), name
    assert found["loss/total"] != expected["loss/total"]
    assert all(parameter.dtype == torch.float32 for parameter in rounded.network.parameters())


@pytest.mark.parametrize(("precision", "matrices"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_float32_is_rounded_to_tf32_where_it_is_asked_for_only(precision: Any, matrices: str) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_float32_precision(precision)
        assert torch.get_float32_matmul_precision() == matrices
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_evaluation_computes_in_the_precision_of_the_run_on_a_gpu_only() -> None:
    assert not is_evaluated_in_bf16("bf16", torch.device("cpu"))  # cards that were measured there are repeated
    assert is_evaluated_in_bf16("bf16", torch.device("cuda", 0))
    assert not is_evaluated_in_bf16("tf32", torch.device("cuda", 0))


def test_a_step_leaves_no_gradient_and_counts_itself() -> None:
    state = new_state()
    metrics = train_step(state, random_batch(6), CONFIG.optim, seed=CONFIG.seed, rank=0)
    assert all(parameter.grad is None for parameter in state.network.parameters())
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics.keys() == {"loss/total", "grad_norm", *(f"loss/{name}" for name in CONFIG.objective.weights)}
    assert state.progress.step == 1
    assert state.optimizer.param_groups[0]["lr"] == learning_rate(0, CONFIG.optim)


def test_the_total_is_the_weighted_sum_and_the_first_step_is_adams() -> None:
    objective = ObjectiveConfig(lvwm=0.5, masked_words_cross=2.0)
    config = dataclasses.replace(CONFIG, objective=objective, optim=dataclasses.replace(CONFIG.optim, weight_decay=0.0))
    state = new_state(dropout=0.0, config=config)
    before = copy.deepcopy(state.network)
    batch = random_batch(6)
    metrics = train_step(state, batch, config.optim, seed=config.seed, rank=0)
    losses = before(batch, normalise(batch.frames))
    total = sum(objective.weights[name] * loss for name, loss in losses.items())
    assert metrics["loss/total"].item() == pytest.approx(float(total.detach()), rel=1e-6)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in before.named_parameters()}
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-5)
    rate, scale = learning_rate(0, config.optim), min(1.0, config.optim.max_grad_norm / (norm + 1e-6))
    for (name, new), old in zip(state.network.named_parameters(), before.parameters(), strict=True):
        gradient = gradients[name] * scale
        expected = old - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(new[gradient.abs() > 1e-5], expected[gradient.abs() > 1e-5], rtol=1e-4, atol=1e-6)


def test_biases_and_norms_do_not_decay_and_all_else_does() -> None:
    state = new_state()
    decayed, others = (group["params"] for group in state.optimizer.param_groups)
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [CONFIG.optim.weight_decay, 0.0]
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)].lower() for p in decayed)
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)].lower() for p in others)
    assert len(decayed) + len(others) == len(names)


def test_parts_that_no_loss_reaches_are_left_to_themselves() -> None:
    config = dataclasses.replace(CONFIG, objective=ObjectiveConfig(gvtm_level2=0.0, masked_words_cross=0.0))
    state = new_state(config=config)
    before = copy.deepcopy(state.network.model.cross_words.state_dict())
    train_step(state, random_batch(6), config.optim, seed=config.seed, rank=0)
    assert_equal(dict(state.network.model.cross_words.state_dict()), dict(before))


def test_dual_steps_are_those_of_a_run_with_the_first_loss_alone() -> None:
    """What it does not reach neither moves nor decays, and begins with a fresh optimizer at the first whole step."""
    alone = ObjectiveConfig(**dict.fromkeys(ObjectiveConfig().weights, 0.0) | {"gvtm_level1": 1.0})
    state = new_state(config=dataclasses.replace(CONFIG, objective=ObjectiveConfig(dual_share=0.4)))
    other, start = new_state(config=dataclasses.replace(CONFIG, objective=alone)), new_state()
    metrics = run_to(state, 2)
    assert_equal(metrics, run_to(other, 2))
    assert metrics[0].keys() == {"loss/total", "grad_norm", "loss/gvtm_level1"}
    assert_equal(dict(state.network.state_dict()), dict(other.network.state_dict()))
    untouched = state.network.model.cross_words
    assert_equal(untouched.state_dict(), start.network.model.cross_words.state_dict())
    (whole,) = run_to(state, 3)
    assert {f"loss/{name}" for name in ObjectiveConfig().weights} < whole.keys()
    moved = [state.optimizer.state[parameter]["step"].item() for parameter in untouched.dense.parameters()]
    assert moved == [1.0, 1.0]
    assert all(parameter.requires_grad for parameter in state.network.parameters())


def test_the_loop_ends_at_the_last_step_and_counts_its_waits() -> None:
    state, clock = new_state(), Clock({"evaluation": 2.0})
    done = list(training_steps(state, batches(), CONFIG.optim, seed=CONFIG.seed, rank=0, clock=clock))
    assert len(done) == state.progress.step == CONFIG.optim.num_steps
    assert [batch.clip_ids.tolist() for _, batch in done] == [
        batch.clip_ids.tolist() for batch, _ in zip(batches(), range(6), strict=False)
    ]
    assert {"evaluation", "data_wait", "step"} <= clock.seconds.keys()
    assert clock.seconds["evaluation"] == 2.0
    assert list(training_steps(state, batches(), CONFIG.optim, seed=CONFIG.seed, rank=0, clock=clock)) == []


def test_speed_counts_the_wait_for_the_device_wherever_it_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is asked to log or to vote answers after its steps; evaluation and checkpoints are no steps."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock({"data_wait": 7.0})
    meter = Meter(0, clock, OptimConfig(global_batch=64))
    for step in range(1, 5):
        for part, seconds in {"data_wait": 0.03, "step": 0.02, "look": 0.2 * (step % 2 == 0)}.items():
            with clock(part):
                now[0] += seconds
    now[0] += 0.4  # the losses of the last two steps are asked for
    found = meter.read(4)
    assert found["seconds_per_step"] == pytest.approx(0.05 + 0.8 / 4)
    assert found["clips_per_second"] == pytest.approx(64 / 0.25)
    assert found["data_wait_share"] == pytest.approx(0.03 / 0.25)
    for part, seconds in {"evaluation": 30.0, "checkpoint": 5.0, "data_wait": 0.05, "step": 0.2}.items():
        with clock(part):
            now[0] += seconds
    assert meter.read(5) == pytest.approx({"seconds_per_step": 0.25, "clips_per_second": 256, "data_wait_share": 0.2})


def test_the_loop_goes_back_to_training_after_an_evaluation() -> None:
    state = new_state()
    for _ in training_steps(state, batches(), CONFIG.optim, seed=CONFIG.seed, rank=0, clock=Clock()):
        state.network.eval()
    evaluated, plain = state, new_state()
    list(training_steps(plain, batches(), CONFIG.optim, seed=CONFIG.seed, rank=0, clock=Clock()))
    assert_same_state(evaluated, plain)


SCHEDULE = OptimConfig(lr=2.0, num_steps=110, warmup_steps=10)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.2), (5, 1.1), (10, 2.0), (60, 2.0 * 0.51), (110, 0.04), (500, 0.04), (35, 2 * (0.02 + 0.98 * 0.8535534))],
)
def test_the_rate_rises_from_a_tenth_and_falls_as_a_cosine_to_a_fiftieth(step: int, rate: float) -> None:
    assert learning_rate(step, SCHEDULE) == pytest.approx(rate)


def test_a_held_rate_falls_as_a_shorter_run_without_a_warm_up_does() -> None:
    held = dataclasses.replace(SCHEDULE, hold_share=0.5)
    short = dataclasses.replace(SCHEDULE, num_steps=55, warmup_steps=0)
    assert {learning_rate(step, held) for step in range(10, 55)} == {2.0}
    assert [learning_rate(step, held) for step in range(10)] == [learning_rate(step, SCHEDULE) for step in range(10)]
    assert [learning_rate(55 + step, held) for step in range(56)] == pytest.approx(
        [learning_rate(step, short) for step in range(56)]
    )


def test_the_rate_never_jumps_and_falls_all_the_way_after_the_warm_up() -> None:
    rates = [learning_rate(step, SCHEDULE) for step in range(111)]
    assert max(rates) == rates[10] == 2.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(abs(one - other) for one, other in zip(rates[1:], rates[:-1], strict=True)) < 0.19


@pytest.mark.parametrize(("step", "rate"), [(0, 0.2), (9, 1.82), (10, 2.0), (49, 2.0), (50, 0.2), (999, 0.2)])
def test_the_rate_of_the_paper_falls_once_to_a_tenth(step: int, rate: float) -> None:
    config = dataclasses.replace(SCHEDULE, decay="step", decay_step=50)
    assert learning_rate(step, config) == pytest.approx(rate)


def test_without_a_warm_up_the_rate_starts_high_and_a_warm_up_may_fill_the_run() -> None:
    assert learning_rate(0, OptimConfig(lr=2.0, warmup_steps=0)) == 2.0
    assert learning_rate(10, OptimConfig(lr=2.0, warmup_steps=10, num_steps=10)) == 2.0


def test_a_loss_that_is_not_finite_stops_the_run_with_clips_and_checkpoint(tmp_path: Path) -> None:
    assert non_finite({"loss/total": 1.0}) == []
    wrong = non_finite({"loss/total": math.nan, "loss/lvwm": math.inf, "loss/gvtm_level1": 1.0})
    assert wrong == ["loss/lvwm", "loss/total"]
    message = r"loss/lvwm, loss/total not finite at step 3; clips of the batch: \[11, 12\]; .*: none yet\."
    assert re.match(message, str(non_finite_error(wrong, 3, [11, 12], str(tmp_path))))
    run_files.write_json(
        f"{tmp_path}/{run_files.SNAPSHOT}", {"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_2"}}
    )
    assert "last good checkpoint: checkpoint_2." in str(non_finite_error(wrong, 3, [11, 12], str(tmp_path)))


@dataclasses.dataclass
class Reporting:
    """A runtime that keeps what it is told."""

    world: World
    reports: list[tuple[float, int, bool, Mapping[str, float]]] = dataclasses.field(default_factory=list)
    folder: str = ""

    def report(self, score: float, step: int, write: Callable[[str], None] | None, probes: Mapping[str, float]) -> None:
        self.reports.append((score, step, write is not None, probes))
        if write:
            write(self.folder)


def test_the_first_rank_writes_the_checkpoint_and_all_take_part(tmp_path: Path) -> None:
    state = new_state()
    run_to(state, 2)
    first, second = (Reporting(World(rank, 2, torch.device("cpu")), folder=str(tmp_path)) for rank in range(2))
    save_checkpoint(state, first, {})
    read = new_state(seed=3)
    read.progress = checkpoints.load(str(tmp_path), read.network, read.optimizer)
    assert_same_state(read, state)
    state.progress = dataclasses.replace(state.progress, score=0.25)
    save_checkpoint(state, second, {"probe": 0.5})
    assert first.reports + second.reports == [(-1.0, 2, True, {}), (0.25, 2, False, {"probe": 0.5})]
    assert Progress().step == 0


def colours_and_words() -> Batch:
    """16 clips of one colour each, red and blue in four shades; a caption names both, one of the two words hidden."""
    red, blue = torch.arange(16) // 4, torch.arange(16) % 4
    frames = torch.zeros(16, NUM_FRAMES, SIZE_PX, SIZE_PX, 3, dtype=torch.uint8)
    frames[..., 0] = (80 * red)[:, None, None, None].to(torch.uint8)
    frames[..., 2] = (80 * blue)[:, None, None, None].to(torch.uint8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    words = torch.stack([FIRST_WORD + red, FIRST_WORD + 4 + blue], dim=1)
    ids = torch.cat([torch.full((16, 1), CLS), words, torch.full((16, 1), SEP)], dim=1)[order]
    labels = torch.full((16, 4), IGNORED_LABEL)
    hidden = 1 + torch.arange(16) % 2
    labels[torch.arange(16), hidden] = ids[torch.arange(16), hidden]
    return Batch(
        clip_ids=order,
        weight=torch.ones(16),
        frames=frames[order],
        frame_pad_mask=torch.zeros(16, NUM_FRAMES, SIZE_PX, SIZE_PX, dtype=torch.bool),
        token_ids=ids,
        masked_token_ids=torch.where(labels == IGNORED_LABEL, ids, MASK),
        token_mask=torch.ones(16, 4, dtype=torch.bool),
        labels=labels,
        word_positions=torch.tensor([[1, 2, 1]]).expand(16, NUM_WORDS).clone(),
    )


def answers(network: Pretraining, batch: Batch) -> tuple[float, float, float]:
    """In-batch R@1 by the dual score and by the cross score, and the share of hidden words that were found."""
    model = network.model.eval()
    with torch.no_grad():
        video = model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
        dual = dual_scores(model.encode_text(batch.token_ids, batch.token_mask).vector, video.vectors, 0.05)
        caption, clip = torch.arange(16).repeat_interleave(16), torch.arange(16).repeat(16)
        fused = model.fuse(batch.token_ids[caption], batch.token_mask[caption], video.tokens[clip])
        cross = model.match(fused.pooled).view(16, 16)
        chosen = batch.labels != IGNORED_LABEL
        hidden = model.fuse(batch.masked_token_ids, batch.token_mask, video.tokens).text_hidden[chosen]
        found = model.cross_words(hidden, model.word_embeddings).argmax(-1) == batch.labels[chosen]
    right = [(scores.argmax(1) == torch.arange(16)).float().mean().item() for scores in (dual, cross)]
    return right[0], right[1], found.float().mean().item()


def test_sixteen_pairs_are_learned_by_heart() -> None:
    config = dataclasses.replace(CONFIG, optim=OptimConfig(num_steps=250, global_batch=16, lr=1e-2, warmup_steps=10))
    state, batch = new_state(seed=1, dropout=0.0, config=config), colours_and_words()
    first = answers(state.network, batch)
    assert max(first) < 0.4
    dual, cross, words, totals = *first, []
    endless = (batch for _ in iter(int, 1))
    for metrics, _ in training_steps(state, endless, config.optim, seed=config.seed, rank=0, clock=Clock()):
        totals.append(metrics["loss/total"].item())
        if state.progress.step % 25 == 0:
            dual, cross, words = answers(state.network, batch)
            if dual == cross == 1.0 and words > 0.9:
                break
    assert (dual, cross) == (1.0, 1.0)
    assert words > 0.9
    assert totals[-1] < totals[0] / 4
