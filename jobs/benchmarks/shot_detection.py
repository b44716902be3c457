"""Quality of shot detection on films with known transitions: `python jobs/benchmark.py split`.

Films consist of scenes of the embedded corpus (`support/joined_film.py`), encoded as H.264. A transition that is
detected within two frames of a true one counts. Decoding and detection run in this process, so that its CPU time
includes both.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from jobs.benchmarks.support.joined_film import FPS, JoinedFilm, f1_of, joined_film
from pipeline.curation.shots import Detector, DetectorName, detector_named
from pipeline.decode.codec import encode_video
from pipeline.decode.config import Limits
from pipeline.decode.every_frame import every_frame

TOLERANCE = 2
"""Greatest distance in frames of a detected transition from a true one."""


def split(
    detectors: tuple[DetectorName, ...] = ("content",),
    num_shots: int = 100,
    seed: int = 0,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return for each detector F1 of cuts and of gradual transitions, and hours of video per CPU hour."""
    result: dict[str, Any] = {"num_shots": num_shots}
    films = {"cuts": joined_film(seed, num_shots, "cuts"), "gradual": joined_film(seed, num_shots, "gradual")}
    with tempfile.TemporaryDirectory() as folder:
        for kind, film in films.items():
            Path(folder, f"{kind}.mp4").write_bytes(encode_video(film.frames, fps=FPS))
            result[f"hours_{kind}"] = round(len(film.frames) / FPS / 3600, 3)
        for name in detectors:
            detector, cpu_seconds = detector_named(name, threshold), 0.0
            for kind, film in films.items():
                seconds, f1 = measured(str(Path(folder, f"{kind}.mp4")), film, detector)
                cpu_seconds += seconds
                result[f"{name}/f1_{kind}"] = round(f1, 4)
            hours = result["hours_cuts"] + result["hours_gradual"]
            result[f"{name}/hours_per_cpu_hour"] = round(hours * 3600 / cpu_seconds, 1)
    return result


def measured(path: str, film: JoinedFilm, detector: Detector) -> tuple[float, float]:
    """Return the CPU seconds and the F1 of a detector on a film."""

    def here(function: Any, data: Any, *, limits: Limits, **arguments: Any) -> Any:
        return function(data, **arguments)

    with mock.patch("pipeline.decode.windows.isolated", here), mock.patch("pipeline.decode.every_frame.isolated", here):
        before = time.process_time()
        _, chunks = every_frame(path, size=detector.size, limits=Limits(), decoder="auto")
        seen = detector.transitions(chunks)
        return time.process_time() - before, f1_of(seen, film.transitions, TOLERANCE)
