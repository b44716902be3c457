"""Schedule, groups and AdamW against recorded numbers, and the two rules of weight decay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from batches import random_batch, tiny_network
from golden import golden
from torch import nn

from jobs.run.config import OptimConfig
from jobs.training import checkpoints
from jobs.training.optimizer import (
    is_decayed,
    layers_above,
    learning_rate,
    make_optimizer,
    parameter_groups,
    pretrained_parts,
    step_factor,
)
from jobs.training.step import make_state, train_step
from snps3_model.config import ModelConfig, VisualConfig

SLOW = ("text_encoder.embeddings.", "text_encoder.encoder.", "text_encoder.pooler.", "img_encoder.")


@pytest.mark.parametrize("case", golden("optim").cases("in/schedule", ("use_warmup",)))
def test_golden_schedule(case: str) -> None:
    file = golden("optim")

    def setting(name: str) -> np.ndarray:
        return file[f"in/schedule/{case}/{name}"]

    epochs = setting("lr_epochs") * setting("iterations_per_epoch")
    found = [
        step_factor(
            int(step),
            warmup_steps=int(setting("warmup_iterations")) if setting("use_warmup") else 0,
            warmup_factor=float(setting("warmup_factor")),
            milestones=epochs.tolist() or setting("lr_steps").tolist(),
            ratio=float(setting("lr_ratio")),
        )
        for step in setting("steps")
    ]
    np.testing.assert_allclose(found, file[f"out/schedule/{case}/multiplier"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("case", "slow"), [("pretrain", ()), ("retrieval_finetune", SLOW)])
def test_golden_published_groups(case: str, slow: tuple[str, ...]) -> None:
    file = golden("optim")
    names = [str(name) for name in file[f"out/groups/{case}/parameter_name"]]
    named = [(name, nn.Parameter(torch.zeros(1))) for name in names]
    groups = parameter_groups(
        named,
        lr=float(file["in/groups/lr"]),
        weight_decay=float(file["in/groups/weight_decay"]),
        rule="published",
        slow=slow,
        slow_factor=float(file["in/groups/encoder_lr_decay"]),
    )
    place = {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}
    found = [place[id(parameter)] for _, parameter in named]
    assert found == file[f"out/groups/{case}/group_index"].tolist()
    for key in ("weight_decay", "lr"):
        values = [groups[number][key] for number in found]
        np.testing.assert_allclose(values, file[f"out/groups/{case}/{key}"], rtol=1e-12, atol=1e-12)


def test_golden_adamw_clipped_and_scheduled() -> None:
    file = golden("optim")
    settings = file.settings["adamw"]
    weight, bias = (nn.Parameter(file.tensor(f"in/adamw/{name}").clone()) for name in ("weight", "bias"))
    decays = settings["weight_decay"]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip((weight, bias), decays, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=tuple(settings["betas"]), eps=settings["eps"])
    for step in range(len(file["in/adamw/grad_weight"])):
        rate = settings["lr"] * step_factor(step, warmup_steps=3, milestones=(4,))
        assert rate == pytest.approx(float(file["out/adamw/lr_used"][step]), rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, name in ((weight, "weight"), (bias, "bias")):
            parameter.grad = file.tensor(f"in/adamw/grad_{name}")[step].clone()
        norm = nn.utils.clip_grad_norm_((weight, bias), settings["max_grad_norm"])
        recorded = file.tensor("out/adamw/total_grad_norm_before_clip")[step]
        torch.testing.assert_close(norm.double(), recorded, rtol=1e-6, atol=0)
        optimizer.step()
        for parameter, name in ((weight, "weight"), (bias, "bias")):
            after = file.tensor(f"out/adamw/{name}_after_each_step")[step]
            torch.testing.assert_close(parameter.detach(), after, rtol=1e-6, atol=1e-6)


def test_our_optimizer_has_the_recorded_settings() -> None:
    settings = golden("optim").settings["adamw"]
    optimizer = make_optimizer(tiny_network().named_parameters(), OptimConfig())
    assert list(optimizer.defaults["betas"]) == settings["betas"]
    assert optimizer.defaults["eps"] == settings["eps"]
    assert OptimConfig().max_grad_norm == settings["max_grad_norm"]


def test_norms_of_visual_encoders_are_not_decayed_and_published_ones_were() -> None:
    """Fault B21."""
    norm, table = torch.zeros(4), torch.zeros(9, 2)
    name = "model.visual.swin.layers.0.blocks.0."
    assert not is_decayed(f"{name}norm1.weight", norm, "vectors")
    assert is_decayed(f"{name}norm1.weight", norm, "published")
    assert is_decayed(f"{name}attn.relative_position_bias_table", table, "vectors")
    assert not is_decayed(f"{name}attn.relative_position_bias_table", table, "published")
    assert not is_decayed("model.text_words.norm.weight", norm, "published")


def test_every_trained_parameter_is_in_one_group() -> None:
    network = tiny_network()
    network.model.video_head.requires_grad_(False)
    for rule in ("vectors", "published"):
        groups = parameter_groups(network.named_parameters(), lr=1.0, weight_decay=0.1, rule=rule)
        members = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(members) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_the_fall_of_the_rate_is_reached_at_its_step() -> None:
    """Fault B5: published steps were counted twice, and the fall at 110,000 of 130,000 never came."""
    config = OptimConfig(num_steps=130_000, lr=5e-5, warmup_steps=2000, decay="step", decay_step=110_000)
    rates = [learning_rate(step, config) / config.lr for step in (0, 1000, 2000, 109_999, 110_000, 129_999)]
    np.testing.assert_allclose(rates, [0.1, 0.55, 1.0, 1.0, 0.1, 0.1], rtol=1e-12)


TEXT = ("model.bert.",)


def after_steps(num_steps: int, **settings: float) -> dict[str, torch.Tensor]:
    """The weights of a small network whose text network counts as pre-trained."""
    config = OptimConfig(num_steps=10, warmup_steps=0, **settings)  # type: ignore[arg-type]
    network = tiny_network(dtype=torch.float32)
    state = make_state(network, network, config, TEXT)  # pyright: ignore[reportArgumentType]
    for _ in range(num_steps):
        train_step(state, random_batch(4), config, seed=0, rank=0)
    return {name: parameter.detach().double() for name, parameter in network.named_parameters()}


def test_rates_of_pretrained_layers_shorten_their_steps_and_no_other() -> None:
    """A step of AdamW with its decay is as long as the rate says."""
    start, plain = after_steps(0), after_steps(1)
    slow = after_steps(1, pretrained_rate=0.5, layer_decay=0.5)
    shares = {
        "model.bert.pooler.dense.weight": 0.5,
        "model.bert.encoder.layer.1.output.dense.weight": 0.5,
        "model.bert.encoder.layer.0.output.dense.weight": 0.25,
        "model.bert.embeddings.word_embeddings.weight": 0.125,
        "model.similarity.1.weight": 1.0,
    }
    for name, share in shares.items():
        whole, step = plain[name] - start[name], slow[name] - start[name]
        assert whole.abs().max() > 1e-4
        torch.testing.assert_close(step, share * whole, rtol=1e-3, atol=1e-6)


def test_pretrained_parts_stay_for_the_first_steps_and_move_then() -> None:
    start, held, moved = (after_steps(count, frozen_steps=2) for count in (0, 2, 3))
    trained = [name for name, weight in start.items() if not torch.equal(moved[name], weight)]
    assert {name.startswith(TEXT) for name in trained} == {True, False}
    for name in trained:
        assert torch.equal(held[name], start[name]) == name.startswith(TEXT), name


def test_a_resumed_run_keeps_the_rates_of_its_parts(tmp_path: Path) -> None:
    config = OptimConfig(num_steps=10, warmup_steps=0, pretrained_rate=0.5, layer_decay=0.5, frozen_steps=1)
    networks = [tiny_network(dtype=torch.float32, seed=seed) for seed in (0, 1)]
    first, again = (make_state(network, network, config, TEXT) for network in networks)  # pyright: ignore[reportArgumentType]
    for step in range(4):
        if step == 2:
            checkpoints.save(str(tmp_path), networks[0], first.optimizer, first.progress)
            again.progress = checkpoints.load(str(tmp_path), networks[1], again.optimizer)
        for state in (first, again)[: 1 + (step >= 2)]:
            train_step(state, random_batch(4), config, seed=0, rank=0)
    assert all(torch.equal(*pair) for pair in zip(*(n.state_dict().values() for n in networks), strict=True))


def test_layers_are_counted_from_above_through_stages() -> None:
    names = (
        "embed.w",
        "layers.0.blocks.0.w",
        "layers.0.blocks.1.w",
        "layers.0.norm.w",
        "layers.1.blocks.0.w",
        "norm.w",
    )
    assert list(layers_above([f"visual.{name}" for name in names]).values()) == [4, 3, 2, 1, 0, 0]


def test_what_starts_from_weights_is_what_the_model_names_them_for() -> None:
    visual = VisualConfig(encoder="pvt_v2_b0", pretrained="weights")
    assert pretrained_parts(ModelConfig()) == ()
    assert pretrained_parts(ModelConfig(visual=visual)) == ("model.visual.backbone.",)
    assert pretrained_parts(ModelConfig(pretrained_text="bert")) == ("model.bert.", "model.separate_cross.")
    assert len(pretrained_parts(ModelConfig(initial_weights="run"))) == 3


def test_the_fused_optimizer_of_gpus_moves_weights_as_the_other_does() -> None:
    moved = []
    for is_fused in (False, True):
        network = tiny_network(dtype=torch.float32)
        optimizer = make_optimizer(network.named_parameters(), OptimConfig())
        assert not optimizer.defaults["fused"]  # these weights lie on a CPU
        for group in optimizer.param_groups:
            group["fused"] = is_fused
        rng = torch.Generator().manual_seed(0)
        for _ in range(5):
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=rng)
            optimizer.step()
        moved.append(dict(network.named_parameters()))
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-5, atol=1e-7)
