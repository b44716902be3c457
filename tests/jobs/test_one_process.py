"""Whole runs in this process, without Ray: what lies where, what a step waits for, and a task of another package."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.run import Runtime
from cluster.world import World
from jobs import ROOT, pretrain
from jobs.benchmarks.structure import PACKAGES, hops, source_figures
from jobs.benchmarks.support import one_process
from jobs.benchmarks.support.one_process import OneProcess, in_one_process, make_clips, small_options
from jobs.command_line.entry import exit_status
from jobs.evaluation.scoring import EvaluateConfig, evaluate
from jobs.inference.model import load
from jobs.launch import driver, run_status
from jobs.run import run_files
from jobs.run.config import Placement
from jobs.run.fields import flat
from jobs.run.run_identity import config_of
from jobs.tasks.task import task_type
from jobs.tracking import logged_runs
from jobs.training import requests, trainer
from jobs.training.job import Job
from jobs.training.requests import STOP_FILE
from pipeline.corpus.manifest import open_manifest, read_manifest, write_in_parts

OUTSIDER = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from jobs.tasks.task import Task
from pipeline.stream.transforms import normalise


class Brightness(nn.Module):
    """Guesses how bright a clip is from its frame vectors."""

    weights = {"brightness": 1.0}

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.hidden, 1)
        for name in ("bert", "text_pooler", "similarity", "cross_pooler", "text_words", "cross_words"):
            getattr(model, name).requires_grad_(False)

    def guess(self, batch, frames):
        return self.head(self.model.encode_video(frames, batch.frame_pad_mask).vectors.mean(1))[:, 0]

    def forward(self, batch, frames):
        errors = self.guess(batch, frames) - brightness(batch)
        return {"brightness": (errors.square() * batch.weight).mean()}


def brightness(batch):
    return batch.frames.float().mean((1, 2, 3, 4)) / 255


@dataclass(frozen=True, kw_only=True)
class BrightnessTask(Task):
    score_name: ClassVar[str] = "brightness"

    @classmethod
    def create(cls, inputs):
        return cls()

    @classmethod
    def metric_names(cls, rerank):
        return ["validation/closeness"]

    def network(self, model, options):
        return Brightness(model)

    @torch.no_grad()
    def measure(self, evaluation):
        errors = [
            (evaluation.network.guess(batch, normalise(batch.frames)) - brightness(batch)).abs().mean()
            for batch in evaluation.batches
        ]
        return {f"{evaluation.name}/closeness": 1 - float(torch.stack(errors).mean())}
'''


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two steps, whose length is given in epochs."""
    storage = tmp_path_factory.mktemp("runs")
    words = [*small_options(manifest, storage, num_steps=100), "--optim.num-epochs", "1"]
    with in_one_process():
        assert pretrain.main(words) == 0
    return storage / "small"


def test_the_resolved_configuration_is_the_same_in_folder_checkpoint_and_mlflow(finished: Path) -> None:
    saved = json.loads((finished / run_files.CONFIG).read_text())
    checkpoint = finished / str(run_files.committed_checkpoint(str(finished)))
    assert (checkpoint / run_files.CONFIG).read_bytes() == (finished / run_files.CONFIG).read_bytes()
    assert len(saved.pop("commit")) >= 7
    tracker = logged_runs.run_of(str(finished.parent), Placement.experiment, "small")
    params = dict(tracker.client.get_run(tracker.run_id).data.params)
    params.pop("manifest_hash")
    assert params == {name: str(value)[:500] for name, value in flat(saved).items()}
    assert saved["optim"]["num_steps"] == 2  # six clips, four a step
    assert config_of(str(finished)).optim.num_steps == 2


def test_the_identity_is_that_of_the_configuration_as_it_was_given(finished: Path) -> None:
    fields = run_files.read_json(f"{finished}/{run_files.IDENTITY}")["fields"]
    assert (fields["optim.num_steps"], fields["optim.num_epochs"]) == (100, 1)
    assert "commit" not in fields


def test_a_corpus_in_parts_is_trained_on_as_one_file(finished: Path, manifest: str, tmp_path: Path) -> None:
    write_in_parts(read_manifest(manifest), parts := str(tmp_path / "parts"))
    words = [*small_options(parts, tmp_path, num_steps=100), "--optim.num-epochs", "1"]
    with in_one_process():
        assert pretrain.main(words) == 0
    of_file, of_parts = (run_files.read_json(f"{folder}/results.json") for folder in (finished, tmp_path / "small"))
    metrics = {key for key in of_file if key.split("/")[0] in ("validation", "test")}
    assert len(metrics) > 10
    assert {key: of_parts[key] for key in metrics} == {key: of_file[key] for key in metrics}
    assert of_parts["manifest_hash"] == open_manifest(parts).hash != of_file["manifest_hash"]
    for name in ("tokenizer.json", "significant_words.json", f"best/{run_files.WEIGHTS}"):
        assert (tmp_path / "small" / name).read_bytes() == (finished / name).read_bytes()

    fewer = dataclasses.replace(read_manifest(parts), table=read_manifest(parts).table[1:])
    assert write_in_parts(fewer, parts).number == 2
    (tmp_path / "small" / "results.json").unlink()  # the run was killed before its end
    with in_one_process():
        assert pretrain.main(words) == 0
    again = run_files.read_json(f"{tmp_path}/small/results.json")
    assert {key: again[key] for key in (*metrics, "manifest_hash")} == {
        key: of_parts[key] for key in (*metrics, "manifest_hash")
    }
    assert config_of(f"{tmp_path}/small").data.manifest == f"{parts}@1"
    assert f"manifest  {parts}@1\n" in run_status.describe(run_status.read_run(f"{tmp_path}/small"))


def test_steps_between_logs_and_polls_wait_for_nothing(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []
    by_step: dict[int, list[str]] = {}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"].partition(".")[0]
            if caller in PACKAGES:  # AdamW looks at its own counter, which lies on the host
                waits.append(name)
            return function(*arguments, **options)

        return call

    def on_step(step: int, metrics: object, batch: object) -> None:
        del metrics, batch
        by_step[step - 1] = waits[:]  # of the loop after the step before, and of this step
        waits.clear()

    class Watched(OneProcess):
        def is_preempted(self) -> bool:
            waits.append("is_preempted")
            return False

    def on_rank(job: Job, runtime: Any) -> None:
        trainer.pretrain_rank(job, runtime, on_step=on_step)

    monkeypatch.setattr(one_process, "OneProcess", Watched)
    monkeypatch.setattr(torch.Tensor, "item", counted("item", torch.Tensor.item))
    for name in ("highest", "gather_objects"):
        monkeypatch.setattr(f"cluster.world.World.{name}", counted(name, getattr(World, name)))
    monkeypatch.setattr(requests, "POLL_SECONDS", 3600.0)  # no poll between logs
    words = [*small_options(manifest, tmp_path, num_steps=12), "--placement.log-every", "5"]
    with in_one_process():
        config = pretrain_config(words)
        driver.pretrain(config, on_rank=on_rank)
    logged = {1, 5, 10}
    assert {step: names for step, names in by_step.items() if step and step not in logged and names} == {}
    assert all({"item", "highest", "is_preempted"} <= set(by_step[step]) for step in logged)


def pretrain_config(words: list[str]) -> Any:
    from jobs.command_line import parsing

    return parsing.parse(words).config


def test_a_request_to_stop_is_answered_between_logs_and_the_run_goes_on_from_there(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(requests, "POLL_SECONDS", 0.0)  # a poll after every step
    folder = tmp_path / "small"

    def stop_at_three(step: int, metrics: object, batch: object) -> None:
        del metrics, batch
        if step == 3:
            (folder / STOP_FILE).touch()

    def on_rank(job: Job, runtime: Any) -> None:
        trainer.pretrain_rank(job, runtime, on_step=stop_at_three)

    config = pretrain_config([*small_options(manifest, tmp_path, num_steps=8), "--placement.log-every", "100"])
    with in_one_process():
        assert driver.pretrain(config, on_rank=on_rank) == {}
        assert run_files.committed_step(str(folder)) == 3
        assert driver.pretrain(config)["num_steps"] == 8


def test_a_loss_that_is_no_number_ends_the_command_with_step_and_clips(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small_options(manifest, tmp_path, num_steps=40), "--optim.lr", "1e30", "--optim.max-grad-norm", "1e30"]
    with in_one_process():
        assert exit_status(lambda: pretrain.main(words)) == 1
    failure = run_files.read_json(f"{tmp_path}/small/{run_files.FAILURE}")
    assert failure["has_diverged"]
    assert "not finite at step" in failure["error"]
    assert "clips of the batch: [" in failure["error"]
    assert f"error: {failure['error']}" in capsys.readouterr().err
    assert not (tmp_path / "small" / "results.json").exists()


def test_ranks_agree_on_the_steps_at_which_they_poll() -> None:
    runtime = Runtime(World(0, 1, torch.device("cpu")), upload=lambda folder, name: None)
    poller = requests.Requests("", runtime, 0)
    for seconds_per_step, interval in ((0.1, 20), (0.5, 4), (1.9, 1), (30.0, 1)):
        poller.set_pace(int(1e6 * seconds_per_step))
        assert poller.interval == interval


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a task in a package that is no part of this project."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "tasks.py").write_text(OUTSIDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield "outside.tasks:BrightnessTask"
    for name in [name for name in sys.modules if name.split(".")[0] == "outside"]:
        del sys.modules[name]


def test_a_task_of_another_package_is_trained_and_scored(
    outsider: str, manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = ["--selection.metric", "validation/closeness"]
    words = [*small_options(manifest, tmp_path / "runs"), "--task.kind", outsider, *metric]
    with in_one_process():
        assert pretrain.main(words) == 0, capsys.readouterr().err
        folder = tmp_path / "runs" / "small"
        results = json.loads((folder / "results.json").read_text())
        assert 0 < results["test/closeness"] <= 1
        for name in [name for name in sys.modules if name.split(".")[0] == "outside"]:
            del sys.modules[name]
        load(str(folder))  # the folder names code, and none of it is run
        with pytest.raises(
            ValueError, match=r"was trained for outside\.tasks:BrightnessTask, a task of another package"
        ):
            evaluate(EvaluateConfig(run=str(folder)))
        assert not any(name.split(".")[0] == "outside" for name in sys.modules)
        card = evaluate(EvaluateConfig(run=str(folder), task=outsider, placement=Placement(num_workers=1)))
    assert card.scores["test/closeness"] == results["test/closeness"]
    assert card.protocol.task == outsider
    assert (card.num_videos, card.num_undecoded) == (4, 0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("caption", r"there is no task 'caption'; did you mean captions\? choose one of captions, question_answering"),
        ("nowhere.tasks:Task", "the task nowhere.tasks:Task cannot be imported: No module named 'nowhere'"),
        ("jobs.tasks.captions:Ranked", "is no subclass of jobs.tasks.task.Task"),
    ],
)
def test_what_is_no_task_is_refused(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_type(kind)


def test_a_command_is_few_functions_away_from_its_losses() -> None:
    figures = hops()
    assert {"gvtm_level1", "lvwm", "masked_words"} <= figures["hops_by_function"].keys()
    assert figures["longest"][0] == "jobs/launch/driver.py:pretrain"
    assert figures["hops"] <= 8


def test_receivers_of_the_whole_config_are_found_however_they_take_it(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.py").write_text(
        """
class Holder:
    config: PretrainConfig
    def method(self): ...
def plain(config: PretrainConfig): ...
def maybe(config: PretrainConfig | None = None): other(config)
def other(anything: Any): ...
def holder(job: Holder): ...
def part(data: DataConfig): ...
def result() -> PretrainConfig: ...
def made_by(make: Callable[[], PretrainConfig]): ...
"""
    )
    (tmp_path / "jobs" / "b.py").write_text(
        """
from jobs import a
from jobs.a import Holder
def imported(held: Holder): ...
def dotted(held: a.Holder): ...
"""
    )
    (tmp_path / "jobs" / "c.py").write_text("class Holder: ...\ndef another_of_that_name(other: Holder): ...\n")
    names = {name.partition(":")[2] for name in source_figures(tmp_path)["receivers_list"]}
    assert names == {"Holder.method", "plain", "maybe", "other", "holder", "imported", "dotted"}


def test_few_functions_receive_the_whole_config() -> None:
    figures = source_figures(ROOT)
    assert figures["receivers"] <= 15, figures["receivers_list"]
    assert figures["receivers_by_package"].keys() == {"jobs"}
