"""What is written is read again to the bit; what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from batches import tiny_network
from torch import nn

from jobs.run import run_files
from jobs.training import checkpoints
from jobs.training.checkpoints import Progress

PROGRESS = Progress(step=7, best_score=0.5, best_step=6, num_stale=1, score=0.25, seconds={"step": 1.5})


class Tied(nn.Module):
    """Two layers of one weight, under names in either order of the alphabet."""

    def __init__(self, first: str, second: str, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.add_module(first, nn.Linear(3, 3))
        self.add_module(second, nn.Linear(3, 3))
        self.get_submodule(second).weight = self.get_submodule(first).weight
        self.register_buffer("mean", torch.rand(2))

    def num_weights(self) -> int:
        return len({parameter.data_ptr() for parameter in self.parameters()})


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW after one step, so that it has a state to keep."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.stack([parameter.double().sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def assert_equal(first: object, second: object) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_weights_optimizer_and_progress_come_back_to_the_bit(tmp_path: Path) -> None:
    saved, other = tiny_network(seed=1), tiny_network(seed=2)
    optimizer, other_optimizer = adam(saved), torch.optim.AdamW(other.parameters(), lr=0.7)
    checkpoints.save(str(tmp_path), saved, optimizer, PROGRESS)
    assert checkpoints.load(str(tmp_path), other, other_optimizer) == PROGRESS
    assert_equal(dict(other.state_dict()), dict(saved.state_dict()))
    assert_equal(other_optimizer.state_dict(), optimizer.state_dict())


def test_the_progress_of_a_run_without_evaluation_comes_back(tmp_path: Path) -> None:
    network = tiny_network()
    checkpoints.save(str(tmp_path), network, adam(network), Progress())
    assert checkpoints.load(str(tmp_path), network, adam(network)) == Progress()


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("way", ["checkpoint", "best"])
def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path, names: tuple[str, str], way: str) -> None:
    saved, other = Tied(*names), Tied(*names, seed=1)
    if way == "checkpoint":
        checkpoints.save(str(tmp_path), saved, adam(saved), PROGRESS)
        data = (tmp_path / run_files.WEIGHTS).read_bytes()
    else:
        checkpoints.save_best(str(tmp_path), saved, PROGRESS)
        data = (tmp_path / "best" / run_files.WEIGHTS).read_bytes()
    assert len(safetensors.torch.load(data)) == len(saved.state_dict()) - 1
    checkpoints.load_weights(data, other)
    assert_equal(dict(other.state_dict()), dict(saved.state_dict()))
    assert other.num_weights() == 3


def test_the_best_weights_lie_beside_what_they_scored(tmp_path: Path) -> None:
    saved, other = tiny_network(seed=1), tiny_network(seed=2)
    checkpoints.save_best(str(tmp_path), saved, PROGRESS)
    checkpoints.load_weights((tmp_path / "best" / run_files.WEIGHTS).read_bytes(), other)
    assert_equal(dict(other.state_dict()), dict(saved.state_dict()))
    assert Progress(**run_files.read_json(f"{tmp_path}/best/{run_files.PROGRESS}")) == PROGRESS


def test_a_missing_or_unknown_tensor_is_refused_by_name() -> None:
    network = tiny_network()
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lost = {name: tensor for name, tensor in tensors.items() if name != "model.cross_words.bias"}
    with pytest.raises(ValueError, match=r"does not fit the model: missing \['model\.cross_words\.bias'\], unexpected"):
        checkpoints.load_weights(safetensors.torch.save(lost), network)
    with pytest.raises(ValueError, match=r"missing \[\], unexpected \['model\.extra'\]"):
        checkpoints.load_weights(safetensors.torch.save(tensors | {"model.extra": torch.ones(1)}), network)


def test_a_missing_pair_of_tied_weights_is_refused() -> None:
    tied = Tied("a", "b")
    others = {name: tensor for name, tensor in tied.state_dict().items() if not name.endswith("weight")}
    with pytest.raises(ValueError, match=r"missing \['a\.weight'"):
        checkpoints.load_weights(safetensors.torch.save(others), tied)


def test_a_tensor_of_another_shape_is_refused_by_name() -> None:
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(3)}
    with pytest.raises((ValueError, RuntimeError), match=r"size mismatch for weight"):
        checkpoints.load_weights(safetensors.torch.save(tensors), nn.Linear(3, 3))


def test_a_checkpoint_that_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    network = tiny_network()
    checkpoints.save(str(tmp_path), network, adam(network), PROGRESS)
    torch.save({"state": Path("anything")}, tmp_path / checkpoints.OPTIMIZER)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.load(str(tmp_path), network, adam(network))


def commit(folder: Path, name: str | None, step: int = 0, *, is_finished: bool = False) -> None:
    """A run's folder as Ray Train leaves it after it committed the checkpoint `name`."""
    results = []
    if name:
        (folder / name).mkdir()
        progress = {"step": step, "is_finished": is_finished}
        (folder / name / run_files.PROGRESS).write_text(json.dumps(progress))
        results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {"score": 0.1, "step": step}}]
    snapshot = {
        "ray_version": "2.60.0",
        "checkpoint_results": results,
        "pending_training_results": [],
        "latest_checkpoint_result": results[-1] if results else None,
    }
    (folder / run_files.SNAPSHOT).write_text(json.dumps(snapshot))


def test_the_committed_step_is_that_of_the_snapshot_not_of_the_newest_folder(tmp_path: Path) -> None:
    assert run_files.committed_step(str(tmp_path)) == 0
    assert run_files.committed_checkpoint(str(tmp_path)) is None
    assert run_files.committed_progress(str(tmp_path)) is None
    commit(tmp_path, "checkpoint_2026-01-01_00-00-01", 40)
    torn = tmp_path / "checkpoint_2026-01-01_00-00-02"
    torn.mkdir()
    (torn / run_files.PROGRESS).write_text('{"step": 80}')
    assert run_files.committed_checkpoint(str(tmp_path)) == "checkpoint_2026-01-01_00-00-01"
    assert run_files.committed_step(str(tmp_path)) == 40
    assert not run_files.is_finished(str(tmp_path))


def begin_upload(folder: Path, name: str) -> Path:
    """A checkpoint whose upload was cut off."""
    torn = folder / name
    (torn / "deep").mkdir(parents=True)
    (torn / "deep" / "half").write_text("x")
    return torn


def test_what_was_uploaded_but_never_committed_is_removed(tmp_path: Path) -> None:
    assert run_files.remove_uncommitted_checkpoints(str(tmp_path)) == []
    commit(tmp_path, "checkpoint_2026-01-01_00-00-02", 40)
    torn = begin_upload(tmp_path, "checkpoint_2026-01-01_00-00-01")
    (tmp_path / "checkpoint_notes.txt").write_text("a person's")
    assert run_files.remove_uncommitted_checkpoints(str(tmp_path)) == [torn.name]
    assert not torn.exists()
    assert (tmp_path / "checkpoint_notes.txt").exists()
    assert run_files.committed_step(str(tmp_path)) == 40
    assert run_files.remove_uncommitted_checkpoints(str(tmp_path)) == []


NO_PROOF: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no results": (lambda snapshot: snapshot.pop("checkpoint_results"), "the key 'checkpoint_results' was expected"),
    "no pending": (
        lambda snapshot: snapshot.pop("pending_training_results"),
        "'pending_training_results' was expected",
    ),
    "no latest": (lambda snapshot: snapshot.pop("latest_checkpoint_result"), "'latest_checkpoint_result' was expected"),
    "no names": (
        lambda snapshot: snapshot["checkpoint_results"][0].pop("checkpoint_dir_name"),
        "'checkpoint_dir_name'",
    ),
    "another Ray": (
        lambda snapshot: snapshot.update(ray_version="3.0.0"),
        "ray_version 2.60.* was expected, got '3.0.0'",
    ),
    "another schema": (lambda snapshot: snapshot["checkpoint_results"][0].update(version=1), "version 0 were expected"),
    "another run's": (
        lambda snapshot: snapshot["checkpoint_results"].append({"version": 0, "checkpoint_dir_name": "checkpoint_9"}),
        "it names checkpoint_9, which was expected and is missing",
    ),
}


@pytest.mark.parametrize("case", NO_PROOF)
def test_an_unknown_snapshot_deletes_nothing_and_says_so(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, words = NO_PROOF[case]
    commit(tmp_path, "checkpoint_2", 40)
    torn = begin_upload(tmp_path, "checkpoint_1")
    path = tmp_path / run_files.SNAPSHOT
    snapshot = json.loads(path.read_text())
    change(snapshot)
    path.write_text(json.dumps(snapshot))
    assert run_files.remove_uncommitted_checkpoints(str(tmp_path)) == []
    assert torn.exists()
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert words in record.getMessage()
    assert "Nothing proves which of the 2 checkpoints are leftovers, so none is deleted" in record.getMessage()


@pytest.mark.parametrize("content", [None, b"", b'{"ray_version": "2.60.0", "checkpoint_resu'])
def test_without_a_whole_snapshot_nothing_is_deleted(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = begin_upload(tmp_path, "checkpoint_1")
    if content is not None:
        (tmp_path / run_files.SNAPSHOT).write_bytes(content)
    assert run_files.remove_uncommitted_checkpoints(str(tmp_path)) == []
    assert torn.exists()
    words = "it was expected, and there is none" if content is None else "JSON was expected"
    assert [words in record.getMessage() for record in caplog.records] == [True]


def test_an_unknown_snapshot_is_no_start_of_a_run(tmp_path: Path) -> None:
    (tmp_path / run_files.SNAPSHOT).write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoint_manager_snapshot\.json is not as Ray 2\.60\.\* writes it"):
        run_files.committed_step(str(tmp_path))


def test_a_run_that_trained_to_its_end_is_finished(tmp_path: Path) -> None:
    assert not run_files.is_finished(str(tmp_path))
    commit(tmp_path, "checkpoint_1", 100, is_finished=True)
    assert run_files.is_finished(str(tmp_path))


def test_a_snapshot_without_a_checkpoint_is_the_start(tmp_path: Path) -> None:
    commit(tmp_path, None)
    assert run_files.committed_step(str(tmp_path)) == 0
    assert not run_files.is_finished(str(tmp_path))


def test_json_is_written_whole_sorted_and_read_again(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "x.json")
    run_files.write_json(path, {"b": [1, None], "a": 0.5})
    assert run_files.read_json(path) == {"a": 0.5, "b": [1, None]}
    assert Path(path).read_text().startswith('{\n "a"')
