"""A corpus in a format from practice, its expected result in `prepare`, and the actual one."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.corpus.preparation import PrepareConfig, plan
from pipeline.records import Reason

ROOT = "root"
"""Folder of the videos, which are empty files: no video is opened."""


@dataclass(frozen=True, kw_only=True, order=True)
class Clip:
    """An expected clip of the manifest."""

    path: str
    """Path of its file."""
    captions: tuple[str, ...]
    split: str = "train"
    times: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files of a corpus, and the expected result of `prepare`, fixed beforehand."""

    name: str
    files: Mapping[str, str | bytes]
    """Path → content. Those below `root/` are the corpus."""
    videos: Sequence[str] = ("a.mp4",)
    annotations: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    clips: Sequence[Clip] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reason → number of samples that are rejected by their names and captions alone."""
    refusal: str = ""
    """Part of the error message; empty if the corpus must be read."""
    remedy: Callable[[Path], Mapping[str, Any]] | None = None
    """Applies the remedy of the error message in the folder of the case, and returns the settings that it names."""


def clip(
    path: str, *captions: str, split: str = "train", times: tuple[float | None, float | None] = (None, None)
) -> Clip:
    """Return a clip of a training split without times."""
    return Clip(path=path, captions=captions, split=split, times=times)


def write_case(case: Case, folder: Path) -> PrepareConfig:
    """Write the files of a case; return the configuration that prepares it."""
    contents = {f"{ROOT}/{name}": b"" for name in case.videos} | dict(case.files)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return PrepareConfig(
        corpus="case",
        root=str(folder / ROOT),
        out=str(folder / "out"),
        annotations=tuple(_inside(folder, source) for source in case.annotations),
        lists=tuple(_inside(folder, source) for source in case.lists),
        columns=case.columns,
    )


def _inside(folder: Path, source: str) -> str:
    split, equals, path = source.rpartition("=")
    return f"{split}{equals}{folder}/{path}"


def read_case(config: PrepareConfig) -> tuple[list[Clip], dict[str, int]]:
    """Return clips with captions and files, sorted, and the number of rejected samples by reason."""
    planned = plan(config)
    lost = [clip for clip in planned.missing if clip.captions]
    silent = [clip for clip in planned.clips if not clip.captions]
    usable = [clip for clip in planned.clips if clip not in lost and clip.captions]
    clips = [
        Clip(
            path=planned.source.name(clip.relative_path),
            captions=clip.captions,
            split=clip.split,
            times=(clip.start_seconds, clip.end_seconds),
        )
        for clip in usable
    ]
    counts = Counter({Reason.MISSING: len(lost), Reason.NO_CAPTION: len(silent), Reason.WRONG_ROW: len(planned.wrong)})
    return sorted(clips, key=str), {str(reason): count for reason, count in counts.items() if count}


def verdict(case: Case, folder: Path) -> str:
    """Return `read`, `refused_with_working_remedy`, `silent`, `crash`, or `refused` for what should have been read.

    `silent`: the result differs from the expected one without an error. `dead_end`: an error whose message or remedy is
    wrong.
    """
    config = write_case(case, folder)
    outcome: Any
    try:
        outcome = read_case(config)
    except (ValueError, OSError) as error:
        if not case.refusal:
            return f"refused: {error}"
        if not re.search(case.refusal, str(error)):
            return f"dead_end: {error}"
        assert case.remedy
        return _after_remedy(case, dataclasses.replace(config, **case.remedy(folder)))
    except Exception as error:
        return f"crash: {error!r}"
    if case.refusal:
        return f"silent: was to be refused, and gave {outcome}"
    return "read" if outcome == _expected(case) else f"silent: {outcome}"


def _after_remedy(case: Case, config: PrepareConfig) -> str:
    try:
        outcome = read_case(config)
    except (ValueError, OSError) as error:
        return f"dead_end: {error}"
    return "refused_with_working_remedy" if outcome == _expected(case) else f"dead_end: {outcome}"


def _expected(case: Case) -> tuple[list[Clip], dict[str, int]]:
    return sorted(case.clips, key=str), dict(case.rejected)
