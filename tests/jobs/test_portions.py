"""`prepare` of a corpus that does not fit in memory: in portions, and from where a killed one was."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.benchmarks.prepare_scale import write_captions
from jobs.benchmarks.support import prepare_run
from jobs.benchmarks.support.search_run import in_turn
from jobs.benchmarks.support.synthetic_manifest import captions_of
from jobs.corpus import gathering, preparation
from jobs.corpus.preparation import PROBED, PrepareConfig, PrepareResult, prepare
from pipeline import storage
from pipeline.corpus import annotations, buckets, parts, sorted_rows, text_files
from pipeline.corpus.ledger import read_ledger
from pipeline.corpus.manifest import read_manifest
from pipeline.offline import kept, stages

NUM_IMAGES = 24


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "stream_blocks", in_turn)
    monkeypatch.setattr("cluster.connection.connected_ray", contextlib.nullcontext)


def write_corpus(root: str, captions: Path) -> None:
    """Write images, and captions that call some of them otherwise, one twice, one of two splits' folders, one that is
    gone, and rows that are wrong."""
    lines = []
    for number in range(NUM_IMAGES):
        folder, stem = f"part {number % 3}", f"{'v_' * (number % 2)}Image{number}"
        picture = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 10 * number, np.uint8)).save(picture, "PNG")
        storage.write_bytes_atomic(f"{root}/{folder}/{stem}.png", picture.getvalue())
        called = (f"{folder}/{stem}.png", f"{stem}.jpg", stem.lower(), f"v_image{number}.png")[number % 4]
        lines.append({"clip_name": called, "caption": f'it is "{number}",\u2028 or so', "type": "image"})
    lines += [{"clip_name": "part 0/Image0.png", "caption": "once more", "type": "image"}]
    lines += [{"clip_name": "gone.png", "caption": "nowhere"}, {"clip_name": "", "caption": "nobody"}]
    captions.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    storage.write_bytes_atomic(f"{root}/part 1/unnamed.png", b"no picture")


def in_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (buckets, "ROWS_IN_MEMORY", 5),
        (sorted_rows, "ROWS_AT_ONCE", 4),
        (gathering, "PORTION_ROWS", 6),
        (gathering, "ROWS_AT_ONCE", 3),
        (text_files, "PIECE_BYTES", 200),
        (annotations, "NUM_TELLING", 4),
    ):
        monkeypatch.setattr(module, name, value)


def prepared(root: str, captions: Path, out: str, **settings: object) -> PrepareResult:
    config = {"corpus": "toy", "root": root, "out": out, "annotations": (str(captions),), "max_rejected_share": 0.5}
    return prepare(PrepareConfig(**config, **settings))  # pyright: ignore[reportArgumentType]


def test_a_corpus_in_portions_is_the_same_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, captions = str(tmp_path / "images"), tmp_path / "captions.jsonl"
    write_corpus(root, captions)
    whole = prepared(root, captions, str(tmp_path / "whole"), in_parts=True)
    in_small_portions(monkeypatch)
    cut = prepared(root, captions, str(tmp_path / "cut"), in_parts=True)
    assert whole.num_clips == {"train": NUM_IMAGES}
    assert read_manifest(whole.manifest_path).table.equals(read_manifest(cut.manifest_path).table)
    assert read_ledger(whole.ledger_path) == read_ledger(cut.ledger_path)
    assert whole.num_rejected == {"missing": 1, "no_annotation": 1, "wrong_row": 1}
    assert whole.list_hashes == cut.list_hashes
    assert whole.num_annotated == cut.num_annotated == {"train": NUM_IMAGES + 1}
    one = prepared(root, captions, str(tmp_path / "one"))
    assert read_manifest(one.manifest_path).table.equals(read_manifest(cut.manifest_path).table)


def kill(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, num_calls: int, job: Callable[[], object]) -> None:
    """Do `job` until `name` has been called so often, and no further."""
    num_left, original = [num_calls], getattr(owner, name)

    def counted(*arguments: object, **named: object) -> object:
        num_left[0] -= 1
        if num_left[0] < 0:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, counted)
        with pytest.raises(KeyboardInterrupt):
            job()


@pytest.mark.parametrize("place", ["local", "bucket"])
def test_a_killed_job_goes_on(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("bucket") if place == "bucket" else str(tmp_path)
    root, captions, out = f"{folder}/images", tmp_path / "captions.jsonl", f"{folder}/out"
    write_corpus(root, captions)
    whole = prepared(root, captions, f"{folder}/whole", in_parts=True)
    in_small_portions(monkeypatch)
    monkeypatch.setattr("pipeline.storage_pages.PAGE_KEYS", 7)
    job = functools.partial(prepared, root, captions, out, in_parts=True)
    kill(monkeypatch, gathering, "put", 3, job)  # while files are listed
    kill(monkeypatch, kept, "write_cached", 2, job)  # while they are looked at
    assert storage.list_files(f"{out}/{PROBED}")
    kill(monkeypatch, preparation, "write_sorted", 0, job)  # before the manifest is written
    kill(monkeypatch, parts, "_commit", 0, job)  # before its index is
    looked_at: list[str] = []

    def recorded(blocks, function, subcluster=None):
        looked_at.extend(uri for block in blocks for uri in block["uri"].to_pylist())
        return in_turn(blocks, function, subcluster)

    monkeypatch.setattr(stages, "stream_blocks", recorded)
    done = job()
    assert done.manifest_hash == whole.manifest_hash
    assert [Path(uri).name for uri in looked_at] == ["gone.png"]  # it may have come meanwhile
    assert not storage.list_files(f"{out}/{PROBED}")
    assert read_ledger(done.ledger_path) == read_ledger(whole.ledger_path)


def test_an_invented_corpus_has_as_many_clips_as_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_small_portions(monkeypatch)
    write_captions(tmp_path / "captions.csv", 130, rows_at_once=40)
    prepare_run.main(str(tmp_path / "captions.csv"), str(tmp_path / "out"), "130")
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = read_manifest(str(tmp_path / "out/manifest")).table.sort_by("uri")
    assert [text for texts in rows["captions"].to_pylist() for text in texts] == captions_of(range(130))
    assert rows["uri"][7].as_py().endswith(f"/videos/{prepare_run.name_of(7)}")
    assert measured["cpu_us_per_clip"] > 0
