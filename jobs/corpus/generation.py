"""Make the embedded corpus: `python -m jobs.make_corpus --out corpora/embedded`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from jobs.tracking import voice
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus

_PROGRESS_EVERY_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class MakeCorpus:
    """Makes the embedded corpus from a seed, unless a complete one of the same config exists."""

    out: Path = Path("corpora/embedded")
    """Folder of the corpus; it appears only when complete."""
    corpus: tyro.conf.OmitArgPrefixes[CorpusConfig] = field(default_factory=CorpusConfig)
    """Content of the corpus."""
    processes: int = len(os.sched_getaffinity(0))
    """Processes that draw and encode."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")


def progress_printer() -> Callable[[int, int], None]:
    """Return a callback that prints the progress twice a second, and at the end."""
    start = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done == total or now - shown >= _PROGRESS_EVERY_SECONDS:
            shown = now
            per_second = done / max(now - start, 1e-9)
            left = (total - done) / per_second
            line = f"corpus: {done}/{total} clips, {per_second:.0f} clips/s, {left:.0f} s left"
            voice.show_progress(line, is_last=done == total)

    return show


def run(config: MakeCorpus) -> None:
    """Make the corpus under `config.out`, unless it exists, and print its path."""
    is_new = make_corpus(config.corpus, config.out, num_processes=config.processes, progress=progress_printer())
    print(f"corpus: {'made' if is_new else 'already there'}: {config.out}")
