"""A loss of another package: a package outside the tree, found on the path or by its entry point."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from batches import MASK, random_batch, tiny_network

from jobs.inference.model import load
from jobs.launch import preflight
from jobs.run.datasets import known_recipes
from jobs.run.presets import tiny
from jobs.run.recipes import fine_tuning
from jobs.run.run_identity import config_of
from jobs.tasks.captions import CaptionTask
from jobs.tasks.network import NetworkOptions
from jobs.training import checkpoints
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig
from snps3_model.gather import local_gather
from snps3_model.loss_table import LOSSES, PARTS, Loss, load_extra
from snps3_model.objective import Pretraining

MODULE = '''
import torch
from torch import nn
from snps3_model.loss_table import DUAL, LOSSES, Loss

def agreement(step):
    """Squared distance of a caption's vector and its clip's mean vector, scaled by a head."""
    scale = step.heads["agreement"](step.text.vector).squeeze(-1).exp()
    return (scale * (step.text.vector - step.video.vectors.mean(1)).square().sum(1)).mean()

AGREEMENT = Loss(name="agreement", title="vectors agree", compute=agreement, reaches=DUAL | {"text_pooler"},
                 head=lambda model: nn.Linear(model.config.hidden, 1))
CLASH = LOSSES[0]
NUMBER = 3
'''
RUN = Path(__file__).parent.parent / "data" / "run_v0_1_0"
OPTIONS = NetworkOptions(gather=local_gather, rank=0, mask_id=MASK, rows_at_once=None)
ALONE = dict.fromkeys((loss.name for loss in LOSSES), 0.0)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the package's module, importable and not imported."""
    (tmp_path / "outsider").mkdir()
    (tmp_path / "outsider" / "__init__.py").touch()
    (tmp_path / "outsider" / "losses.py").write_text(MODULE)
    metadata = tmp_path / "outsider-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[snps3.losses]\nagreement = outsider.losses:AGREEMENT\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "outsider.losses"
    for name in ("outsider", "outsider.losses"):
        sys.modules.pop(name, None)


def trained(objective: ObjectiveConfig) -> Pretraining:
    """A tiny network with the losses that `objective` names, as a run makes it."""
    task = CaptionTask(objective=objective, extra=load_extra(objective))
    network = task.network(tiny_network().model, OPTIONS)
    assert isinstance(network, Pretraining)
    return network.double()


@pytest.mark.parametrize("name", ["outsider.losses:AGREEMENT", "agreement"])
def test_a_loss_of_another_package_is_trained_beside_ours(package: str, name: str) -> None:
    network, batch = trained(ObjectiveConfig(extra=(f"{name}=0.5",))), random_batch(4)
    losses = network(batch, normalise(batch.frames).double())
    step = network.step(batch, normalise(batch.frames).double())
    scale = torch.exp(network.extra_heads["agreement"](step.text.vector)[:, 0])
    distance = (step.text.vector - step.video.vectors.mean(1)).square().sum(1)
    torch.testing.assert_close(losses["agreement"], (scale * distance).mean())
    assert network.weights == ObjectiveConfig().weights | {"agreement": 0.5}
    assert losses.keys() == network.weights.keys()


def test_it_alone_trains_what_it_reaches_and_its_head(package: str) -> None:
    network, batch = trained(ObjectiveConfig(**ALONE, extra=(f"{package}:AGREEMENT",))), random_batch(4)
    (loss,) = network(batch, normalise(batch.frames).double()).values()
    loss.backward()
    gradients = {name for name, p in network.named_parameters() if p.grad is not None}
    assert {name for name, p in network.named_parameters() if p.requires_grad} == gradients
    assert {name.split(".")[0] for name in gradients} == {"model", "extra_heads"}
    assert {"model.bert", "model.visual", "model.video_head"} == {
        ".".join(name.split(".")[:2]) for name in gradients if name.startswith("model.")
    }


def test_a_run_folder_that_names_a_package_imports_nothing(package: str, tmp_path: Path) -> None:
    folder = shutil.copytree(RUN, tmp_path / "run")
    saved = json.loads((folder / "config.json").read_text())
    saved["objective"]["extra"] = [f"{package}:AGREEMENT"]
    (folder / "config.json").write_text(json.dumps(saved))
    file = folder / "best" / "model.safetensors"
    weights = safetensors.torch.load_file(file) | {"extra_heads.agreement.weight": torch.ones(1, 16)}
    safetensors.torch.save_file(weights, file)
    model, config = load(str(folder)), config_of(str(folder))
    evaluated = CaptionTask(objective=config.objective).network(model.network, OPTIONS)
    checkpoints.load_weights(file.read_bytes(), evaluated)
    assert fine_tuning(known_recipes()["tiny_retrieval"], config, str(folder)).objective.extra == ()
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outsider.losses:NUMBER", "outsider.losses:NUMBER is a int, not a snps3_model.loss_table.Loss"),
        ("outsider.losses:CLASH", "outsider.losses:CLASH is called 'gvtm_level1', as another loss; rename it"),
        ("outsider.losses:ABSENT", "outsider.losses:ABSENT cannot be imported: module 'outsider.losses' has no attr"),
        ("nowhere.losses:X", "nowhere.losses:X cannot be imported: No module named 'nowhere'"),
        ("nobody", "nobody cannot be imported: no installed package has the entry point 'nobody' of snps3.losses"),
    ],
)
def test_what_is_no_loss_is_refused_before_a_start(package: str, name: str, message: str) -> None:
    config = dataclasses.replace(tiny(), objective=ObjectiveConfig(extra=(name,)))
    with pytest.raises(ValueError, match=message):
        load_extra(config.objective)
    found = preflight.value_problems(config, None, preflight.Machine(num_cpus=None, num_gpus=None))
    assert any(problem.startswith(f"objective.extra: {message}") for problem in found)


@pytest.mark.parametrize("text", ["a b", "package:NAME=", "package:NAME=-1", "package:NAME=nan", ""])
def test_an_entry_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"objective\.extra must hold package\.module:NAME, or"):
        ObjectiveConfig(extra=(text,))


def test_the_table_names_fields_parts_and_functions_that_exist() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(ObjectiveConfig)}
    assert len({loss.name for loss in LOSSES}) == len(LOSSES)
    for loss in LOSSES:
        assert (fields[loss.name] == 0) == loss.is_optional
        assert loss.function().__name__ == loss.name
    model = tiny_network(num_temporal_layers=1, grid_side=1).model
    assert all(hasattr(model, part) for part in PARTS)
    with pytest.raises(ValueError, match=r"the loss 'x' reaches 'hands'; parts are bert, cross_network, "):
        Loss(name="x", title="x", compute=len, reaches=frozenset({"hands"}))
