from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.command_line.entry import exit_status
from jobs.corpus.preparation import PrepareConfig, PrepareResult, describe, prepare
from jobs.prepare import main
from jobs.run.datasets import known_datasets, known_recipes, published_test_set
from jobs.run.presets import tiny
from jobs.run.recipes import fine_tuning
from pipeline import storage
from pipeline.corpus.caption_formats import installed_datasets
from pipeline.corpus.ledger import TooManyRejectedError, read_ledger
from pipeline.corpus.manifest import open_manifest, read_manifest
from pipeline.decode.codec import encode_video
from pipeline.decode.decoders import loadable
from pipeline.records import Reason

pytestmark = pytest.mark.ray


def write_corpus(folder: Path, num_clips: int = 6) -> None:
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir(parents=True)
    for index in range(num_clips):
        frames = rng.integers(0, 255, (8, 32, 32, 3), np.uint8)
        (folder / "videos" / f"v{index}.mp4").write_bytes(encode_video(frames, fps=8))
    write_lines(folder / "captions.jsonl", [f"v{index}" for index in range(num_clips)])


def write_lines(path: Path, names: list[str]) -> None:
    lines = [
        {"clip_name": name, "caption": f"this is {name}", "split": "test" if name == "v0" else "train"}
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def config(folder: Path, **changes) -> PrepareConfig:
    settings = {
        "corpus": "toy",
        "root": str(folder / "videos"),
        "annotations": (str(folder / "captions.jsonl"),),
        "out": str(folder / "out"),
    }
    return PrepareConfig(**settings | changes)


@pytest.fixture
def folder(tmp_path, local_ray) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def test_a_manifest_in_parts_is_made_of_the_corpus_or_of_the_one_file(folder, caplog):
    one = prepare(config(folder))
    with caplog.at_level("INFO"):
        parts = prepare(config(folder, in_parts=True))
    assert f"{folder}/out/manifest, hash {parts.manifest_hash} was {one.manifest_hash}" in caplog.text
    assert read_manifest(parts.manifest_path).table.equals(read_manifest(one.manifest_path).table)
    assert open_manifest(parts.manifest_path).hash == parts.manifest_hash != one.manifest_hash
    assert prepare(config(folder, in_parts=True)) == parts
    anew = prepare(config(folder, in_parts=True, out=str(folder / "videos" / "out")))
    assert (anew.manifest_hash, anew.num_clips) == (parts.manifest_hash, one.num_clips)
    assert prepare(config(folder, in_parts=True, out=str(folder / "videos" / "out"))) == anew


def test_the_same_input_gives_the_same_bytes_and_again_does_nothing(folder):
    done = prepare(config(folder))
    assert done.num_clips == {"test": 1, "train": 5}
    assert done.num_rejected == {}
    manifest = Path(done.manifest_path)
    before, changed = manifest.read_bytes(), manifest.stat().st_mtime_ns
    assert prepare(config(folder)) == done
    assert manifest.stat().st_mtime_ns == changed
    prepare(config(folder, force=True))
    assert manifest.stat().st_mtime_ns > changed
    assert manifest.read_bytes() == before
    write_lines(folder / "captions.jsonl", ["v0", "v1"])
    assert prepare(config(folder)).num_clips == {"test": 1, "train": 1}


def test_decoders_are_measured_on_request(folder):
    done = prepare(config(folder, measure_decoders=True))
    assert read_manifest(done.manifest_path).decoders.keys() == set(loadable())
    assert prepare(config(folder, measure_decoders=True)) == done
    assert not read_manifest(prepare(config(folder)).manifest_path).decoders


def test_moving_a_corpus_changes_neither_ids_nor_hash(folder):
    here = prepare(config(folder))
    shutil.copytree(folder / "videos", folder / "elsewhere")
    there = prepare(config(folder, root=str(folder / "elsewhere"), out=str(folder / "out2")))
    assert there.manifest_hash == here.manifest_hash
    one, other = read_manifest(here.manifest_path), read_manifest(there.manifest_path)
    assert one.table.drop_columns("uri").equals(other.table.drop_columns("uri"))
    assert other.root == str(folder / "elsewhere")
    assert all(uri.startswith(other.root) for uri in other.table["uri"].to_pylist())


def test_a_bucket_gives_the_manifest_of_the_folder(folder, bucket):
    here = prepare(config(folder))
    for path in (*(folder / "videos").iterdir(), folder / "captions.jsonl"):
        storage.write_bytes_atomic(f"{bucket}/{path.relative_to(folder)}", path.read_bytes())
    in_bucket = {"root": f"{bucket}/videos", "annotations": (f"{bucket}/captions.jsonl",), "out": f"{bucket}/out"}
    there = prepare(config(folder, **in_bucket))
    assert there.manifest_hash == here.manifest_hash
    one, other = read_manifest(here.manifest_path), read_manifest(there.manifest_path)
    assert one.table.drop_columns("uri").equals(other.table.drop_columns("uri"))
    assert prepare(config(folder, **in_bucket)) == there


def test_too_many_missing_files_stop_after_the_ledger_is_written(folder):
    write_lines(folder / "captions.jsonl", ["v0", "v1", "gone0", "gone1"])
    with pytest.raises(
        TooManyRejectedError, match=r"2 of 4 samples were rejected \(missing 2\), 50\.0% is more than 5\.0%"
    ):
        prepare(config(folder))
    ledger = read_ledger(str(folder / "out" / "rejected.parquet"))
    assert sorted(one.uri.rsplit("/", 1)[1] for one in ledger if one.reason == Reason.MISSING) == [
        "gone0.mp4",
        "gone1.mp4",
    ]
    assert sum(one.reason == Reason.NO_ANNOTATION for one in ledger) == 4
    assert not (folder / "out" / "manifest.parquet").exists()
    done = prepare(config(folder, max_rejected_share=0.5))
    assert done.num_rejected == {"no_annotation": 4, "missing": 2}
    assert "rejected  no_annotation 4, missing 2" in describe(done)


def test_a_folder_with_sidecars_may_hold_its_own_manifest(folder):
    for index in range(5):
        (folder / "videos" / f"v{index}.txt").write_text(f"side-car {index}\n")
    settings = {"annotations": (), "out": str(folder / "videos"), "max_rejected_share": 0.2}
    done = prepare(config(folder, **settings))
    assert (done.num_clips, done.num_rejected) == ({"train": 5}, {"no_caption": 1})
    assert prepare(config(folder, **settings)) == done


def test_nothing_usable_is_refused(folder):
    write_lines(folder / "captions.jsonl", ["gone0"])
    with pytest.raises(ValueError, match=r"no clip of .*videos is usable: .*missing"):
        prepare(config(folder, max_rejected_share=1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_rejected_share": 1.5}, r"max_rejected_share must lie in \[0, 1\], got 1\.5"),
        ({"decoder": "opencv"}, "no decoder 'opencv'; choose one of decord, pyav"),
        ({"corpus": " "}, "corpus must be a name"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    arguments = ["--corpus", "toy", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert exit_status(lambda: main(arguments)) == 2
    assert (
        f"error: {tmp_path}/nowhere does not exist (the nearest folder that does is {tmp_path})"
        in capsys.readouterr().err
    )
    (tmp_path / "file").write_bytes(b"")
    arguments = ["--corpus", "toy", "--root", str(tmp_path), "--out", str(tmp_path / "file" / "out")]
    assert exit_status(lambda: main(arguments)) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_the_command_line_prepares(folder, capsys):
    arguments = ["--corpus", "toy", "--root", str(folder / "videos"), "--out", str(folder / "out")]
    arguments += ["--annotations", f"val={folder / 'captions.jsonl'}", "--format", "json_lines"]
    assert exit_status(lambda: main(arguments)) == 0
    assert "clips     test 1, train 5" in capsys.readouterr().out


def _prepare_real(real_files: Path, folder: Path, *, cut: bool) -> PrepareResult:
    videos = folder / "videos"
    videos.mkdir(parents=True)
    names = [path.name for path in sorted((real_files / "videos").iterdir())]
    for name in names:
        shutil.copyfile(real_files / "videos" / name, videos / name)
    if cut:
        whole = (videos / "video9770.mp4").read_bytes()
        (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
        names.append("cut.mp4")
    write_lines(folder / "captions.jsonl", names)
    return prepare(config(folder, max_rejected_share=0.25))


def test_real_clips_and_a_cut_copy_of_one(real_files, tmp_path, local_ray):
    whole = _prepare_real(real_files, tmp_path / "whole", cut=False)
    cut = _prepare_real(real_files, tmp_path / "cut", cut=True)
    assert (whole.num_clips, whole.num_rejected) == ({"train": 4}, {})
    assert (cut.num_clips, cut.num_rejected) == ({"train": 4}, {"truncated": 1})
    assert cut.manifest_hash == whole.manifest_hash
    rows = {row["uri"].rsplit("/", 1)[1]: row for row in read_manifest(whole.manifest_path).table.to_pylist()}
    assert (rows["video1.mp4"]["width"], rows["video1.mp4"]["height"], rows["video1.mp4"]["num_frames"]) == (
        568,
        320,
        300,
    )
    assert rows["video9771.mp4"]["fps"] == pytest.approx(30000 / 1001)
    assert rows["dog.jpg"]["kind"] == "image"
    (lost,) = read_ledger(cut.ledger_path)
    assert lost.uri.endswith("/cut.mp4")
    assert lost.reason == Reason.TRUNCATED


def test_two_nodes_give_the_manifest_of_one(tmp_path, small_manifest):
    corpus = Path(small_manifest).parent.parent
    lines = sorted(str(path) for path in (corpus / "annotations").glob("*.jsonl"))
    command = [sys.executable, str(Path(__file__).parent / "two_nodes.py"), str(corpus), str(tmp_path / "two"), *lines]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"hash": read_manifest(small_manifest).hash, "num_nodes": 2}


OUTSIDER = """
from jobs.run.datasets import Dataset, TestSet
from jobs.run.recipes import Recipe
from pipeline.corpus.caption_readers import annotated
from pipeline.corpus.text_files import lines


def read(text, path):
    for where, line in lines(text, path):
        name, caption = line.split("|")
        yield annotated(where, name, [caption])


RECIPE = Recipe(name="film_retrieval", title="Retrieval on films.", corpus="films", num_steps=70, decay_step=40)
FILMS = Dataset(name="films", format="film_readers.captions:read", recipes=(RECIPE,), tests=(TestSet(title="Films"),))
"""


@pytest.fixture
def outsider(folder, monkeypatch):
    """An installed package with a data set of its own, and a file of captions in its format."""
    package, installed = folder / "site" / "film_readers", folder / "site" / "film_readers-1.dist-info"
    package.mkdir(parents=True)
    installed.mkdir()
    (package / "__init__.py").touch()
    (package / "captions.py").write_text(OUTSIDER)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: film_readers\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[snps3.datasets]\nfilms = film_readers.captions:FILMS\n")
    monkeypatch.syspath_prepend(folder / "site")
    (folder / "captions.films").write_text("v1|one\nv2|two\n")
    caches = (installed_datasets, known_datasets)
    for cached in caches:
        cached.cache_clear()
    yield folder
    for cached in caches:
        cached.cache_clear()


def test_a_data_set_of_another_package_is_prepared_and_fine_tuned_on(outsider):
    captions = (str(outsider / "captions.films"),)
    by_reader = prepare(config(outsider, annotations=captions, format="film_readers.captions:read"))
    by_name = prepare(config(outsider, annotations=captions, format="films", out=str(outsider / "named")))
    assert by_reader.num_clips == by_name.num_clips == {"train": 2}
    assert by_reader.manifest_hash == by_name.manifest_hash
    assert read_manifest(by_name.manifest_path).table["captions"].to_pylist() == [["one"], ["two"]]
    tuned = fine_tuning(known_recipes()["film_retrieval"], tiny(), "runs/tiny")
    assert (tuned.data.manifest, tuned.optim.num_steps) == ("corpora/films/manifest.parquet", 70)
    assert published_test_set("films", "retrieval", 2).title == "Films"


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("msvdd", "format must be one of table, .*, asr, or package.module:Name of a reader outside, got 'msvdd'"),
        ("no.such:reader", "format no.such:reader: No module named 'no'"),
        ("json:nothing", "format json:nothing: module 'json' has no attribute 'nothing'"),
        ("json:JSONDecodeError", "must be a Format, or a reader"),
    ],
)
def test_a_format_that_is_none_is_refused(tmp_path, format, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, format=format)


NAMES = {
    "good.mp4": None,
    "Show :: part 2.mp4": None,
    "no_suffix": None,
    "S01E02.Pilot.mp4": None,
    "link.mp4": None,
    "disc.m2ts": None,
    "loop.mp4": (Reason.UNREADABLE, "Too many levels of symbolic links"),
    "pipe.mp4": (Reason.UNREADABLE, "a pipe, socket or device"),
    "broken.mp4": (Reason.MISSING, "does not exist"),
    "folder.mp4": (Reason.UNREADABLE, "a folder, not a file"),
    "page.mp4": (Reason.UNREADABLE, "the file is an HTML page, not a video"),
    "phone.heic": (Reason.UNSUPPORTED_CODEC, "convert it to JPEG or PNG"),
    "zero\0byte.mp4": (Reason.UNREADABLE, "null byte"),
    f"{'long' * 99}.mp4": (Reason.UNREADABLE, "File name too long"),
}
"""Name in the annotations → its row in the ledger; None: it is usable."""
UNNAMED = {
    "caf\\xe9.mp4": "its name is not UTF-8",
    "linked": "a link to a folder",
    "tape.mxf": "no annotation names this file",
    "other.gif": "no annotation names this file",
}


def test_no_name_link_or_pipe_ends_prepare(tmp_path, local_ray):
    root = tmp_path / "videos"
    (tmp_path / "elsewhere").mkdir()
    root.mkdir()
    video = encode_video(np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8), fps=8)
    for name in (
        "good.mp4",
        "Show :: part 2.mp4",
        "no_suffix",
        "S01E02.Pilot.mp4",
        "disc.m2ts",
        "tape.mxf",
        "other.gif",
    ):
        (root / name).write_bytes(video)
    (root / "page.mp4").write_text("<html><body>404</body></html>")
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.mp4")).write_bytes(video)
    os.mkfifo(root / "pipe.mp4")
    (root / "folder.mp4").mkdir()
    targets = {"loop.mp4": "loop.mp4", "broken.mp4": "gone", "link.mp4": "good.mp4", "linked": "../elsewhere"}
    for name, target in targets.items():
        (root / name).symlink_to(target)
    write_lines(
        tmp_path / "captions.jsonl", [name.removesuffix("Pilot.mp4") + "Pilot" * ("Pilot" in name) for name in NAMES]
    )
    done = prepare(config(tmp_path, max_rejected_share=1.0))
    usable = {Path(uri).name for uri in read_manifest(done.manifest_path).table["uri"].to_pylist()}
    assert usable == {name for name, row in NAMES.items() if row is None}
    rows = {storage.relative_to(row.uri, str(root)): row for row in read_ledger(done.ledger_path)}
    for name, (reason, detail) in {name: row for name, row in NAMES.items() if row}.items():
        assert rows[name].reason == reason
        assert detail in rows[name].detail
    for name, detail in UNNAMED.items():
        assert (rows[name].reason, rows[name].detail[: len(detail)]) == (Reason.NO_ANNOTATION, detail)


@pytest.mark.parametrize("how", ["pipe", "loop", "latin"])
def test_a_side_car_that_cannot_be_read_costs_its_clip(tmp_path, local_ray, how):
    write_corpus(tmp_path, num_clips=2)
    root, sidecar = tmp_path / "videos", tmp_path / "videos" / "v1.txt"
    (root / "v0.txt").write_text("a caption")
    match how:
        case "pipe":
            os.mkfifo(sidecar)
        case "loop":
            sidecar.symlink_to("v1.txt")
        case _:
            sidecar.write_bytes(b"caf\xe9")
    done = prepare(config(tmp_path, annotations=(), max_rejected_share=1.0))
    assert (done.num_clips, done.num_rejected) == ({"train": 1}, {"no_caption": 1})
