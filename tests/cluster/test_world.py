"""Two and four processes against one on the same global batch: losses, gradients, batch-norm statistics."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import MASK, part, random_batch, tiny_network
from torch import Tensor

from cluster.world import World, make_world
from pipeline.records import Batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig, reference_objective
from snps3_model.objective import Pretraining

LOSSES = ("gvtm_level1", "gvtm_level2", "masked_words_text", "masked_words_cross", "lvwm")
NONE = dict.fromkeys(LOSSES, 0.0)
OBJECTIVES = {
    "exact": ObjectiveConfig(),
    "hard": ObjectiveConfig(num_hard_negatives=2),
    "drawn": ObjectiveConfig(num_hard_negatives=3, negative_spread=1.0),
    **{name: ObjectiveConfig(**NONE | {name: 1.0}) for name in LOSSES},
    "queues": ObjectiveConfig(queue_length=32, queue_momentum=0.9),
    "temperature": ObjectiveConfig(learn_temperature=True),
    "itm": ObjectiveConfig(itm=1.0),
    "hard itm": ObjectiveConfig(itm=1.0, itm_negative="hard"),
    "sigmoid": ObjectiveConfig(**NONE | {"sigmoid": 1.0}, learn_temperature=True),
    "attentive": ObjectiveConfig(attentive_share=1.0),
    "published": reference_objective(queue_length=32, queue_momentum=0.9, pairs="gathered"),
}
ALL_LOSSES = (*LOSSES, "itm", "sigmoid")
CASES = [(name, torch.float64) for name in OBJECTIVES] + [
    (name, torch.float32) for name in ("exact", "drawn", "published")
]
GLOBAL_BATCH = 8
EMPTY = (1, 6, 7)
"""Rows of weight 0: a rejected clip, and a padded tail that is all that the last of four ranks has."""
SIZES = (4, 2)

Result = dict[str, dict[str, Tensor]]


def global_batch() -> Batch:
    return random_batch(GLOBAL_BATCH, seed=2, empty=EMPTY)


def steps(network: Pretraining, world: World) -> Result:
    """Losses, gradients and buffers after two passes over this rank's share, trimmed to its own longest caption."""
    share = GLOBAL_BATCH // world.size
    batch = part(global_batch(), range(world.rank * share, (world.rank + 1) * share))
    dtype = network.model.word_embeddings.dtype
    wrapped = world.wrap(network)
    losses: dict[str, Tensor] = {}
    for _ in range(2):
        network.zero_grad(set_to_none=True)
        losses = wrapped(batch, normalise(batch.frames).to(dtype))
        total = torch.stack([loss * (1 + ALL_LOSSES.index(name)) for name, loss in losses.items()]).sum()
        total.backward()
    return {
        "losses": {name: loss.detach() for name, loss in losses.items()},
        "gradients": {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None},
        "buffers": {name: buffer.clone() for name, buffer in network.named_buffers()},
    }


def all_cases(world: World) -> dict[str, Result]:
    results = {}
    for name, dtype in CASES:
        network = tiny_network(OBJECTIVES[name], dtype=dtype)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            network = Pretraining(
                network.model, OBJECTIVES[name], gather=world.gather, rank=world.rank, mask_id=MASK
            ).to(dtype)
        results[f"{name} {dtype}"] = steps(network, world)
    return results


def small_facts(world: World) -> dict[str, object]:
    """What the other methods of a world answer on this rank."""
    module = torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        module.weight.fill_(world.rank + 1.0)
        module.running_mean.fill_(world.rank + 5.0)
    world.wrap(module)  # gives every rank the state of the first
    rows = (torch.arange(2.0) + 2 * world.rank).requires_grad_()
    gathered = world.gather(rows)
    (gathered * torch.arange(1.0, len(gathered) + 1) * (world.rank + 1)).sum().backward()
    terms = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    added = world.gather(terms[0]) + world.gather(terms[1])  # autograd hands both the same gradient
    (added * torch.arange(1.0, len(added) + 1) * (world.rank + 1)).sum().backward()
    return {
        "is_first": world.is_first,
        "highest": [world.highest(value)() for value in (world.rank, 0)],
        "weight": module.weight.tolist(),
        "running_mean": module.running_mean.tolist(),
        "gathered": gathered.tolist(),
        "gradient": rows.grad.tolist(),
        "gradients_of_sum": [term.grad.tolist() for term in terms],
    }


def votes_of_the_host(world: World) -> list[object]:
    """What ranks agree on whose device holds no values: nothing of it may pass through the device."""
    apart = World(world.rank, world.size, torch.device("meta"), votes=dist.new_group(backend="gloo"))
    answers = [apart.highest(int(apart.rank == value)) for value in (1, apart.size)]
    return [*(answer() for answer in answers), apart.gather_objects([apart.rank])]


def on_each_rank(rank: int, folder: str) -> None:
    """Each world size in turn, on as many of the processes as it needs."""
    torch.set_num_threads(1)
    for size in SIZES:
        if rank >= size:
            return
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size)
        world = make_world("cpu")
        facts = small_facts(world) | {"votes": votes_of_the_host(world)}
        torch.save({"cases": all_cases(world), "facts": facts}, f"{folder}/{size}-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """World size → what each of its ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["transformers.models.bert.modeling_bert"])  # the slow import, once for all
    mp.start_processes(on_each_rank, args=(str(folder),), nprocs=max(SIZES), start_method="forkserver")
    return {size: [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)] for size in SIZES}


@pytest.fixture(scope="module")
def of_one() -> dict[str, Result]:
    return all_cases(make_world("cpu"))


def relative_differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Parameter → largest difference of its gradient, in parts of its largest value.

    Softmax cancels the biases of attention keys and the last bias of the matching score: their gradient is 0 but for
    rounding, so it has no scale of its own and is held against that of the weights beside them.
    """
    assert found.keys() == expected.keys()
    beside = {"self.key.bias": "self.query.bias", "similarity.3.bias": "similarity.3.weight"}
    result = {}
    for name, gradient in expected.items():
        reference = name
        for cancelled, kept in beside.items():
            reference = reference.replace(cancelled, kept)
        scale = expected[reference].abs().max().item()
        result[name] = (found[name].double() - gradient.double()).abs().max().item() / scale
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_any_number_of_ranks_computes_what_one_process_does(
    of_ranks, of_one: dict[str, Result], name: str, dtype: torch.dtype, size: int
) -> None:
    expected, exact = of_one[f"{name} {dtype}"], of_one[f"{name} {torch.float64}"]
    is_single = dtype == torch.float32
    rounding = max(relative_differences(expected["gradients"], exact["gradients"]).values())
    # One process in single precision is itself up to 7e-6 away from double: the head's gradient is a sum that cancels.
    # Another order of summation may be off as much again; an error of meaning shows in double, at 1e-10.
    allowed = max(2e-6, 5 * rounding) if is_single else 1e-10
    for rank in of_ranks[size]:
        found = rank["cases"][f"{name} {dtype}"]
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-6 if is_single else 1e-10, atol=0)
        apart = relative_differences(found["gradients"], expected["gradients"])
        assert not {parameter: apart[parameter] for parameter in apart if apart[parameter] > allowed}
        for buffer, value in expected["buffers"].items():
            largest = 2e-6 * value.abs().max().item() if is_single else 1e-10 * value.abs().max().item()
            torch.testing.assert_close(found["buffers"][buffer], value, rtol=0, atol=largest)


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_has_the_same_gradients_to_the_bit(of_ranks, size: int) -> None:
    first, *others = [rank["cases"] for rank in of_ranks[size]]
    for other in others:
        for case, result in first.items():
            torch.testing.assert_close(other[case]["gradients"], result["gradients"], rtol=0, atol=0)


def test_the_batch_of_these_tests_is_uneven() -> None:
    batch, counts = global_batch(), []
    for rank in range(4):
        share = part(batch, range(2 * rank, 2 * rank + 2))
        counts.append((share.token_ids.shape[1], share.weight.sum().item(), int((share.labels >= 0).sum())))
    lengths, weights, labels = zip(*counts, strict=True)
    assert len(set(lengths)) > 2
    assert weights == (1, 2, 2, 0)
    assert labels[3] == 0
    assert len(set(labels[:3])) > 1
    assert batch.frame_pad_mask.any()


@pytest.mark.parametrize("size", SIZES)
def test_gather_any_and_broadcast(of_ranks, size: int) -> None:
    total = size * (size + 1) / 2
    for rank, answers in enumerate(of_ranks[size]):
        assert answers["facts"] == {
            "is_first": rank == 0,
            "highest": [size - 1, 0],
            "weight": [1.0, 1.0],
            "running_mean": [5.0, 5.0],
            "gathered": [float(row) for row in range(2 * size)],
            "gradient": (gradient := [total * (2 * rank + 1), total * (2 * rank + 2)]),
            "gradients_of_sum": [gradient, gradient],
            "votes": [1, 0, list(range(size))],
        }


def test_a_world_of_one_gathers_and_wraps_nothing() -> None:
    world, network = make_world("cpu"), tiny_network()
    rows = torch.ones(2)
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.gather(rows) is rows
    assert world.wrap(network) is network
    assert world.highest(2)() == 2
