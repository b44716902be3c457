"""Pictures of the pages: line charts as SVG, clips as filmstrips in CSS. All functions are pure.

The SVG does not come from matplotlib: 40 lines suffice for lines and ticks, CSS variables as colours suit both the
light and the dark page, and a report needs no plotting library.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup, escape
from PIL import Image

NUM_COLOURS = 6
DASHES = ("", "6 3", "1.5 3")
"""Dash patterns, which distinguish lines of the same colour."""
MAX_LINES = NUM_COLOURS * len(DASHES)
MAX_POINTS = 120
"""Most points of a line; longer histories are averaged in bins of equal size, which also smooths them."""
LEFT, TOP, BOTTOM = 46, 8, 34
"""Margins of a chart in pixels, for the tick labels."""
MAX_BINS = 30
FILM_SIZES = ((96, 82), (72, 80), (48, 75), (32, 60))
"""(height in pixels, JPEG quality) of filmstrips, best first; a page uses the first that fits."""
MAX_FILM_BYTES = 1_800_000
"""Limit of the total size of all filmstrips, so that a page stays below 3 MB."""
MAX_FRAMES = 6


def thinned(points: Sequence[tuple[float, float]], max_points: int = MAX_POINTS) -> Float[np.ndarray, "P 2"]:
    """Return the finite points, or the means of at most `max_points` bins of equal size if there are more."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    if len(array) <= max_points:
        return array
    return np.stack([part.mean(axis=0) for part in np.array_split(array, max_points)])


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * 0.999)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Iterable[Sequence[tuple[float, float]]],
    *,
    x_label: str = "step",
    width: int = 400,
    height: int = 210,
    is_log: bool = False,
) -> Markup:
    """Draw lines of (x, y) as an SVG element that inherits colours and font from the page.

    `is_log` makes both axes logarithmic, for positive values. Otherwise y starts at 0 or at the lowest negative value.
    """
    arrays = [np.log10(thinned(line)) if is_log else thinned(line) for line in lines]
    all_points = np.concatenate([*arrays, np.zeros((0 if any(map(len, arrays)) else 1, 2))])
    low, high = all_points.min(axis=0), all_points.max(axis=0)
    low[1] = min(low[1], 0.0)
    high = np.where(high > low, high, low + 1)
    scale = np.array([width - LEFT - 8, TOP + BOTTOM - height]) / (high - low)  # the y axis of SVG points down
    origin = np.array([LEFT, height - BOTTOM]) - scale * low
    parts = []
    for tick in ticks(low[1], high[1]):
        y = origin[1] + scale[1] * tick
        parts.append(f'<path d="M{LEFT} {y:.1f}H{width}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick, is_log)}</text>')
    for tick in ticks(low[0], high[0]):
        x = origin[0] + scale[0] * tick
        parts.append(f'<text x="{x:.1f}" y="{height - 19}" text-anchor="middle">{_number(tick, is_log)}</text>')
    parts.append(f'<text x="{(LEFT + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for number, array in enumerate(arrays):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in origin + scale * array)
        colour, dash = line_style(number)
        parts.append(f'<polyline points="{points}" stroke="var({colour})" stroke-dasharray="{dash}"/>')
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">'
    return Markup(head + "".join(parts) + "</svg>")


def line_style(number: int) -> tuple[str, str]:
    """Return the CSS variable and the dashes of a chart's line `number`."""
    return f"--c{number % NUM_COLOURS + 1}", DASHES[number // NUM_COLOURS % len(DASHES)]


def _number(value: float, is_log: bool) -> str:
    value = 10**value if is_log else value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def histogram(values: Float[np.ndarray, " N"], label: str) -> Markup:
    """Draw a histogram with about `MAX_BINS` bins at most; the highest 1 % of the values fall into the last bin."""
    highest = float(np.percentile(values, 99))
    is_whole = bool(np.all(values == np.round(values))) and highest - values.min() < MAX_BINS
    bins = np.arange(values.min(), highest + 2) - 0.5 if is_whole else MAX_BINS
    counts, edges = np.histogram(np.minimum(values, highest), bins=bins)
    outline = np.stack([edges.repeat(2), [0, *counts.repeat(2), 0]], axis=1)
    return line_chart([[(x, y) for x, y in outline.tolist()]], x_label=label)


class FilmRoll:
    """The filmstrips of a page: each clip is embedded once, as a CSS class, however often it is shown."""

    def __init__(self) -> None:
        self.clips: dict[str, UInt8[np.ndarray, "T h w 3"]] = {}

    def add(self, source: str, index: int, frames: UInt8[np.ndarray, "T h w 3"]) -> str:
        """Return the CSS class that shows clip `index` of `source`."""
        name = f"film-{source}-{index}"
        self.clips.setdefault(name, frames)
        return name

    def rules(self) -> Markup:
        """Return a CSS rule per clip: picture, number of frames, frame size. Contains no text of captions or files."""
        uris = filmstrips(self.clips.values(), max_bytes=MAX_FILM_BYTES)
        rules = []
        for (name, frames), uri in zip(self.clips.items(), uris, strict=True):
            count, height, width = min(len(frames), MAX_FRAMES), *frames.shape[1:3]
            rules.append(f".{name}{{--film:url({uri});--n:{count};--w:{width};--h:{height}}}")
        return Markup("\n".join(rules))


def filmstrip(frames: UInt8[np.ndarray, "T H W 3"], *, height: int, quality: int) -> bytes:
    """Return a JPEG of up to six evenly spaced frames side by side, each at most `height` pixels high."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int))
    scale = min(1.0, height / frames.shape[1])
    size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames[chosen]]
    jpeg = io.BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(jpeg, format="JPEG", quality=quality)
    return jpeg.getvalue()


def filmstrips(clips: Iterable[UInt8[np.ndarray, "T H W 3"]], *, max_bytes: int) -> list[str]:
    """Return each clip's filmstrip as a data URI, in the best quality whose total size is at most `max_bytes`.

    If none fits, use the lowest quality.
    """
    clips, uris = list(clips), []
    for height, quality in FILM_SIZES:
        strips = [filmstrip(clip, height=height, quality=quality) for clip in clips]
        uris = [f"data:image/jpeg;base64,{base64.b64encode(strip).decode('ascii')}" for strip in strips]
        if sum(map(len, uris)) <= max_bytes:
            break
    return uris
