"""Pictures of the report: charts as SVG text, heat maps and filmstrips as data URIs. Pure, nothing is written.

Charts carry no colour of their own. Each line is drawn in a placeholder that becomes a CSS variable of the page, so
one drawing suits the light and the dark page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from PIL import Image

Row = Mapping[str, float]
"""One line of the history: `step` and the scalars logged at that step."""

COLOURS = {"#010102": "--muted", "#010103": "--line"} | {f"#01011{number}": f"--c{number}" for number in range(1, 7)}
"""Placeholder -> CSS variable. Matplotlib writes the first into the SVG, the page defines the second."""
TEXT, GRID, *SERIES = COLOURS
DASHES = ("-", "--", ":")
"""Of lines of one colour."""

CHART_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from the run; a dollar sign in one is no formula
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
}
MAX_POINTS = 240
"""Points of a curve; longer histories are averaged in bins of equal size."""
MAX_BINS = 30
MAX_HEAT_MAP_SIDE = 400
"""Rows and columns of a heat map; of larger matrices the top left corner is shown."""
FILM_SIZES = ((96, 82), (72, 80), (48, 75), (32, 60))
"""(height in pixels, JPEG quality) of filmstrips, best first; the first that fits the page is taken."""
MAX_FRAMES = 6


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A score matrix as a picture, with the scores of its darkest and brightest colour."""

    uri: str
    low: float
    high: float
    num_rows: int
    num_columns: int


def series(rows: Sequence[Row], name: str) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Steps and values of one scalar, without the rows that lack it or hold no finite number."""
    pairs = [(row["step"], row[name]) for row in rows if name in row and np.isfinite(row[name])]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.asarray(steps, dtype=float), np.asarray(values, dtype=float)


def thinned(values: Float[np.ndarray, " P"], num_points: int = MAX_POINTS) -> Float[np.ndarray, " p"]:
    """At most `num_points` values: the means of bins of equal size, in order."""
    if len(values) <= num_points:
        return values
    return np.asarray([part.mean() for part in np.array_split(values, num_points)])


def smoothed(values: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """The mean of each value and its neighbours, over a window of a twelfth of the curve."""
    half = len(values) // 24
    totals = np.cumsum(np.concatenate([[0.0], values]))
    start = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (totals[end] - totals[start]) / (end - start)


def chart(draw: Callable[[Axes], None], *, name: str, width: float = 4.0, height: float = 2.1) -> str:
    """An SVG element of `width` by `height` inches that takes its colours and font from the page.

    `name` must be unique on the page: it keeps the inner references of two charts apart.
    """
    with matplotlib.rc_context({**CHART_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        drawn = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unsaid)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick)_\d+"', "", svg)
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # that style would hold for the whole page
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for placeholder, variable in COLOURS.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def history_chart(name: str, train: Sequence[Row], validation: Sequence[Row], *, width: float = 4.0) -> str:
    """One scalar over steps: as measured pale, the moving mean strong, validation as dots."""

    def draw(axes: Axes) -> None:
        steps, values = (thinned(part) for part in series(train, name))
        axes.plot(steps, values, color=SERIES[0], alpha=0.25, linewidth=0.9)
        axes.plot(steps, smoothed(values), color=SERIES[0], linewidth=1.8, label="training")
        if any(name in row for row in validation):
            axes.plot(*series(validation, name), "o-", color=SERIES[1], linewidth=1, markersize=3.5, label="validation")
            axes.legend(loc="best", fontsize=8)
        if np.all(values >= 0):
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")

    return chart(draw, name=f"history {name}", width=width)


def shares_chart(name: str, rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """Several shares in [0, 1] over steps, in percent. `labels` maps at most three scalars to their names."""

    def draw(axes: Axes) -> None:
        for colour, (key, label) in zip(SERIES, labels.items(), strict=False):
            axes.plot(*series(rows, key), "o-", color=colour, linewidth=1.6, markersize=3.5, label=label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(loc="best", fontsize=8)
        axes.set_xlabel("step")

    return chart(draw, name=f"shares {name}")


def runs_chart(name: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """One scalar over steps, a line per run in the order given; more runs than colours differ in their dashes."""

    def draw(axes: Axes) -> None:
        for number, (run, points) in enumerate(curves.items()):
            rows = [{"step": step, name: value} for step, value in points]
            steps, values = (thinned(part) for part in series(rows, name))
            dashes = DASHES[number // len(SERIES) % len(DASHES)]
            axes.plot(steps, values, dashes, color=SERIES[number % len(SERIES)], linewidth=1.5, label=run)
        axes.set_xlabel("step")

    return chart(draw, name=f"runs {name}", width=5.0, height=2.8)


def found_chart(recalls: Mapping[str, Float[np.ndarray, " K"]], num_candidates: int) -> str:
    """The share of queries whose right clip is among the first k, for every k from 1 on; chance is the dotted line."""

    def draw(axes: Axes) -> None:
        for colour, (name, values) in zip(SERIES, recalls.items(), strict=False):
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=1.8, label=name)
        depth = max(len(values) for values in recalls.values())
        looked_at = np.arange(1, depth + 1)
        axes.plot(looked_at, looked_at / num_candidates, ":", color=TEXT, linewidth=1.2, label="chance")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(loc="center right", fontsize=8)
        axes.set_xlabel("clips looked at (k)")

    return chart(draw, name="found", width=4.5, height=2.8)


def histogram_chart(name: str, values: Float[np.ndarray, " N"], label: str) -> str:
    """How often values occur, over at most 30 bins; the outer 1 % at the upper end share the last one."""

    def draw(axes: Axes) -> None:
        most = float(np.percentile(values, 99))
        is_whole = bool(np.all(values == np.round(values))) and most - values.min() < MAX_BINS
        bins = list(np.arange(values.min(), most + 2) - 0.5) if is_whole else MAX_BINS
        axes.hist(np.minimum(values, most), bins=bins, color=SERIES[0], rwidth=0.9)
        axes.set_xlabel(label)
        axes.set_ylim(bottom=0)

    return chart(draw, name=f"histogram {name}")


def ranks_chart(name: str, counts: Int[np.ndarray, " N"], label: str) -> str:
    """Counts in falling order over their rank, both on logarithmic axes."""

    def draw(axes: Axes) -> None:
        axes.loglog(np.arange(1, len(counts) + 1), np.sort(counts)[::-1], color=SERIES[0], linewidth=1.8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)

    return chart(draw, name=f"ranks {name}")


def heat_map(scores: Float[np.ndarray, "Q C"], order: Sequence[int]) -> HeatMap:
    """The matrix as a picture, one pixel per pair, its rows in `order`; the outer 1 % at both ends are clipped."""
    shown = scores[np.asarray(order)][:MAX_HEAT_MAP_SIDE, :MAX_HEAT_MAP_SIDE]
    low, high = np.percentile(shown[np.isfinite(shown)], [1, 99])
    unit = np.clip((shown - low) / (high - low), 0, 1) if high > low else np.full(shown.shape, 0.5)
    pixels = np.round(255 * matplotlib.colormaps["magma"](unit)[..., :3]).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).quantize(128).save(png, format="PNG", optimize=True)
    num_rows, num_columns = shown.shape
    return HeatMap(
        uri=data_uri(png.getvalue(), "image/png"),
        low=float(low),
        high=float(high),
        num_rows=num_rows,
        num_columns=num_columns,
    )


def filmstrip(frames: UInt8[np.ndarray, "T H W 3"], *, height: int, quality: int) -> bytes:
    """A JPEG of up to six evenly spaced frames side by side, each at most `height` pixels high."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int))
    scale = min(1.0, height / frames.shape[1])
    size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames[chosen]]
    jpeg = io.BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(jpeg, format="JPEG", quality=quality)
    return jpeg.getvalue()


def filmstrips(clips: Iterable[UInt8[np.ndarray, "T H W 3"]], *, max_bytes: int) -> list[str]:
    """Each clip's filmstrip as a data URI, in the best quality whose sum stays below `max_bytes`.

    The coarsest quality is used even where it does not fit.
    """
    clips, uris = list(clips), []
    for height, quality in FILM_SIZES:
        uris = [data_uri(filmstrip(clip, height=height, quality=quality), "image/jpeg") for clip in clips]
        if sum(map(len, uris)) <= max_bytes:
            break
    return uris


def data_uri(content: bytes, media_type: str) -> str:
    """`content` as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
