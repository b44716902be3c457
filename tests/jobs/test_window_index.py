"""Search in an index on disk: the same windows as a look at all of them, and nothing of what is not its own."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from jobs.inference import window_index
from jobs.inference.index import EMBEDDED, EmbedConfig, bring_up_to_date, embed
from jobs.inference.index_files import INDEX, Part, num_windows, open_part, parts_in, tensors_of, write_tensors
from jobs.inference.query import SearchConfig, answers, search, text_of
from jobs.inference.window_index import WindowIndex
from jobs.launch import lease
from jobs.run import run_files
from pipeline import storage
from snps3_model.snps3 import dual_scores
from tests.made_run import made_run

WIDTH, TEMPERATURE = 32, 0.05


def write_part(folder: str, name: str, num: int, *, model: str = "m", width: int = WIDTH) -> torch.Tensor:
    """Write a part of `num` windows of three frames, which lie about a common direction. Return their vectors."""
    generator = torch.Generator().manual_seed(num)
    rows = [{"uri": f"/{name}.mp4", "version": "1", "start_seconds": 5.0 * i, "end_seconds": 9.0} for i in range(num)]
    clips = torch.randn(num, 1, width, generator=generator) + 2
    vectors = normalize(clips + 0.3 * torch.randn(num, 3, width, generator=generator), dim=-1)
    path = f"{folder}/part-{name}.parquet"
    write_tensors(path, vectors, vectors[:, :2].clone(), model)
    storage.write_table(path, pa.Table.from_pylist(rows, schema=EMBEDDED))
    return vectors


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_codes_choose_what_a_look_at_all_windows_finds(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path) if place == "disk" else f"{request.getfixturevalue('bucket')}/index"
    vectors = torch.cat([write_part(folder, name, num) for name, num in (("a", 700), ("b", 1), ("c", 900))])
    exact = WindowIndex.open(folder, "m", WIDTH)
    assert exact.is_exact
    by_codes = WindowIndex(exact.parts, exact_bytes=0)
    monkeypatch.setattr(window_index, "LEAST_CANDIDATES", 40)
    for seed in range(5):
        text = normalize(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)
        scores = dual_scores(text, vectors, TEMPERATURE)[0]
        expected = scores.topk(10)
        for index in (exact, by_codes):
            rows, dual = index.first(text, 10, TEMPERATURE)
            assert rows.tolist() == expected.indices.tolist()
            torch.testing.assert_close(dual, expected.values)
    torch.testing.assert_close(by_codes.vectors(torch.tensor([1600, 699, 700])), vectors[[1600, 699, 700]])
    assert [by_codes.place(row)[:2] for row in (699, 700, 703)] == [("/a.mp4", 3495.0), ("/b.mp4", 0), ("/c.mp4", 10.0)]


def test_the_first_of_equal_windows_come_first() -> None:
    rows, scores = window_index.highest(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 3.0]), 4)
    assert (rows.tolist(), scores.tolist()) == ([1, 3, 5, 2], [3, 3, 3, 2])
    assert window_index.highest(torch.tensor([1.0, 2.0]), 9)[0].tolist() == [1, 0]


@pytest.mark.parametrize("num_values", [3, 100_000])
@pytest.mark.parametrize("count", [1, 40, 1000, 5000])
@pytest.mark.parametrize("share", [None, 0.5, 0.001])
def test_the_highest_are_those_of_a_full_sort(num_values: int, count: int, share: float | None) -> None:
    generator = torch.Generator().manual_seed(count)
    scores = torch.randint(num_values, (5000,), generator=generator).float()
    scores[::16] -= 0.25 * (num_values == 3)  # the sampled scores are the lowest
    eligible = None if share is None else (torch.rand(5000, generator=generator) < share).numpy()
    expected = [
        row for row in scores.argsort(descending=True, stable=True).tolist() if eligible is None or eligible[row]
    ]
    rows, values = window_index.highest(scores, count, eligible)
    assert rows.tolist() == expected[:count]
    assert torch.equal(values, scores[rows])


def test_candidates_grow_with_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for num in (1000, 4000):
        part = Part(
            path="",
            vectors=normalize(torch.randn(num, 2, 8), dim=-1),
            tokens=torch.empty(num, 0, 8),
            codes=torch.randint(-127, 127, (num, 8), dtype=torch.int8),
            scale=torch.ones(1),
        )
        index = window_index.WindowIndex([part], exact_bytes=0)
        monkeypatch.setattr(window_index, "LEAST_CANDIDATES", 10)
        monkeypatch.setattr(index, "vectors", lambda rows, part=part: counts.append(len(rows)) or part.vectors[rows])
        index.first(torch.ones(1, 8), 1, 0.05)
    assert counts == [10, 32]


def crafted(data: bytes) -> bytes:
    """Return tensors whose header asks for 10⁹ rows."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for name in ("codes", "vectors", "tokens"):
        header[name]["shape"][0] = 10**9
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + length :]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[:-1], "are cut off"),
    "cut in the header": (lambda data: data[:100], "are cut off"),
    "empty": (lambda data: b"", "are cut off"),
    "no tensors": (lambda data: b"PAR1" * 100, "are cut off, or no tensors"),
    "a list": (lambda data: struct.pack("<Q", 2) + b"[]", "are cut off, or no tensors"),
    "10⁹ bytes of header": (lambda data: struct.pack("<Q", 10**9) + data[8:], "are cut off"),
    "10⁹ rows": (crafted, "are 1000000000 windows of part-a.parquet, the table has 6"),
    "another type": (lambda data: data.replace(b'"I8"', b'"U8"'), "hold"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_refused_and_their_videos_embedded_again(case: str, tmp_path: Path) -> None:
    write_part(str(tmp_path), "a", 6)
    (path,) = parts_in(str(tmp_path))
    change, words = BROKEN[case]
    tensors = Path(tensors_of(path))
    tensors.write_bytes(change(tensors.read_bytes()))
    with pytest.raises(ValueError, match=rf"part-a.safetensors: the tensors ({words}).*give the same `embed` again"):
        WindowIndex.open(str(tmp_path), "m", WIDTH)
    assert bring_up_to_date(str(tmp_path), {"/a.mp4": "1"}) == (set() if case != "another type" else {"/a.mp4"})


def test_a_part_of_another_model_file_or_number_of_windows_is_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    write_part(folder, "a", 6)
    write_part(folder, "b", 7)
    first, second = parts_in(folder)
    with pytest.raises(ValueError, match="was made with the model m, not n; name its model with --run"):
        open_part(first, "n", WIDTH)
    with pytest.raises(ValueError, match=r"hold .*'torch.int8', 6, 32.* not .*'torch.int8', 6, 64"):
        open_part(first, "m", 64)
    storage.write_table(second, storage.read_table(second).slice(1))
    with pytest.raises(ValueError, match=r"are 7 windows of part-b.parquet, the table has 6; give the same `embed`"):
        open_part(second, "m", WIDTH)
    Path(tensors_of(second)).write_bytes(Path(tensors_of(first)).read_bytes())
    with pytest.raises(ValueError, match=r"are 6 windows of part-a.parquet, the table has 6"):
        open_part(second, "m", WIDTH)
    Path(tensors_of(second)).unlink()
    with pytest.raises(ValueError, match="the tensors are not there"):
        open_part(second, "m", WIDTH)
    assert bring_up_to_date(folder, {"/a.mp4": "1", "/b.mp4": "1"}) == {"/a.mp4"}


def test_rows_that_go_take_their_tensors_along(tmp_path: Path) -> None:
    folder = str(tmp_path)
    vectors = write_part(folder, "a", 6)
    (path,) = parts_in(folder)
    table = storage.read_table(path)
    storage.write_table(path, table.set_column(1, "uri", pa.array(["/a", "/b", "/a", "/b", "/b", "/a"])))
    index = WindowIndex.open(folder, "m", WIDTH)
    assert bring_up_to_date(folder, {"/a": "1"}) == {"/a"}
    torch.testing.assert_close(WindowIndex.open(folder, "m", WIDTH).parts[0].vectors, vectors[[0, 2, 5]])
    assert num_windows(path) == 3
    torch.testing.assert_close(index.vectors(torch.arange(6)), vectors)  # who has it open sees what it was
    with pytest.raises(ValueError, match="was written anew since the index was opened; open it again"):
        index.place(0)


def searched(tmp_path: Path, **options: Any) -> SearchConfig:
    """Return a search in an index of invented windows of a run with random weights."""
    run, folder = made_run(tmp_path), f"{tmp_path}/index"
    weights = run_files.weights_hash(run)
    run_files.write_json(f"{folder}/{INDEX}", {"model": weights, "run": run})
    write_part(folder, "a", 9, model=weights, width=96)
    return SearchConfig(index=folder, num_results=2, **options)


def test_many_questions_are_answered_as_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a red ring rises", "two shapes meet"]
    lines = f"{json.dumps(texts[0])}\n\n{json.dumps({'text': texts[1], 'id': 3})}\n"
    (tmp_path / "queries.jsonl").write_text(lines)
    config = searched(tmp_path, queries=f"{tmp_path}/queries.jsonl")
    from_file = [json.loads(answer) for answer in answers(config)]
    assert [answer["text"] for answer in from_file] == texts
    for answer in from_file:
        alone = search(dataclasses.replace(config, text=answer["text"], queries=None))
        assert answer["matches"] == [dataclasses.asdict(match) for match in alone]
        assert len(alone) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(lines + "17\n"))
    piped = answers(dataclasses.replace(config, queries="-"))
    assert [json.loads(next(piped)) for _ in range(2)] == from_file
    with pytest.raises(ValueError, match="line 4 of the queries must be a JSON string or"):
        next(piped)


@pytest.mark.parametrize("line", ["", "red", "17", "null", "[1]", "{}", '{"text": 3}', '" "'])
def test_a_line_that_asks_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 7 of the queries must be"):
        text_of(7, line)


def test_a_question_is_a_text_or_a_file() -> None:
    for options, refusal in (
        ({"text": " "}, "text must say what is looked for"),
        ({"text": "a", "queries": "b"}, "give either a text or --queries"),
        ({"text": "a" * 10_000}, "the question has 10,000 characters, at most 1,000 are read"),
    ):
        with pytest.raises(ValueError, match=refusal):
            SearchConfig(index="index", **options)


def test_two_processes_that_embed_into_a_folder_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RENEW_SECONDS": 0.1, "POLL_SECONDS": 0.05}.items():
        monkeypatch.setattr(lease, name, value)
    config = EmbedConfig(run=str(tmp_path), videos=str(tmp_path), out=f"{tmp_path}/index")
    with lease.held(config.out), pytest.raises(ValueError, match=r"index has a live driver: process \d+ on"):
        embed(config)
    with pytest.raises(ValueError, match="holds neither videos nor images"):  # the lease is free again
        embed(config)
    assert not np.any([name.endswith("lease") for name in storage.list_files(config.out)])
