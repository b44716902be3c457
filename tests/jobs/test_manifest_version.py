"""A run trains on one version of its manifest, which it names, however often the corpus grows meanwhile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jobs.launch import preflight
from jobs.launch.manifest_version import with_version
from jobs.run import run_files
from jobs.run.config import PretrainConfig
from jobs.run.presets import tiny
from pipeline.corpus.manifest import make_manifest, open_manifest, write_in_parts, write_manifest
from tests.pipeline.test_manifest_versions import rows_of


def config_with(manifest: str) -> PretrainConfig:
    return dataclasses.replace(tiny(), data=dataclasses.replace(tiny().data, manifest=manifest))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A manifest of three versions."""
    for size in (3, 5, 8):
        write_in_parts(make_manifest("toy", "/v", rows_of(range(size))), str(tmp_path / "manifest"))
    return str(tmp_path / "manifest")


@pytest.mark.parametrize(
    ("named", "begun_with", "taken", "is_said"),
    [
        ("", None, 3, False),
        ("", 3, 3, False),
        ("", 1, 1, True),
        ("@2", None, 2, False),
        ("@2", 1, 2, False),  # the other identity is refused later, with the difference
        ("", "of another corpus", 3, False),
    ],
)
def test_a_run_names_its_version(
    named: str, begun_with: int | str | None, taken: int, is_said: bool, folder: str, tmp_path: Path
) -> None:
    run, said = str(tmp_path / "run"), []
    if begun_with:
        then = open_manifest(f"{folder}@{begun_with}").hash if isinstance(begun_with, int) else begun_with
        run_files.write_json(f"{run}/{run_files.IDENTITY}", {"fields": {"data.manifest_hash": then}})
    data, listing = with_version(config_with(folder + named).data, "tiny", run, said.append)
    assert data.manifest == f"{folder}@{taken}"
    assert len(listing) == {1: 3, 2: 5, 3: 8}[taken]
    begun = f"tiny goes on with {folder}@1, which it began with; version 3 has 8 clips: a run under another --name "
    assert said == [begun + "trains on it"] * is_said


def test_a_manifest_in_one_file_has_no_version(tmp_path: Path) -> None:
    write_manifest(make_manifest("toy", "/v", rows_of(range(3))), path := str(tmp_path / "manifest.parquet"))
    data, listing = with_version(config_with(path).data, "tiny", str(tmp_path / "run"))
    assert (data.manifest, len(listing)) == (path, 3)


def test_a_dry_run_shows_the_version_and_refuses_one_that_is_not_there(folder: str) -> None:
    words = preflight.describe(preflight.survey(config_with(f"{folder}@2")))
    assert "corpus     toy version 2, 5 clips: train 5 videos" in words
    words = preflight.describe(preflight.survey(config_with(f"{folder}@7")))
    assert "has no version 7: it has 1 (3 clips), 2 (5 clips), 3 (8 clips). Name one of them, as" in words
