"""Schedule, groups and AdamW against recorded numbers, and the two rules of weight decay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import tiny_network
from golden import golden
from torch import nn

from jobs.run.config import OptimConfig
from jobs.training.optimizer import is_decayed, learning_rate, make_optimizer, parameter_groups, step_factor

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
