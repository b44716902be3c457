"""The report: what it shows, what it leaves out, what it never does."""

from __future__ import annotations

import dataclasses
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluation.cards import Card, Protocol
from jobs.reports import figures
from jobs.reports.run_report import MaskedCaption, ReportData, render_report, with_protocols
from jobs.tasks.task import Examples
from snps3_model import metrics
from tests.scores import retrieval_metrics

COLOURS = {"red": (214, 64, 69), "blue": (52, 101, 220), "green": (58, 160, 86), "yellow": (231, 183, 44)}
MOVES = ("slides to the right", "rises slowly", "slides to the left", "sinks")
VOID = {"meta", "img", "br", "link"}


def moving_square(colour: tuple[int, int, int], move: int, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A clip of five frames in which a square goes right, up, left or down over a noisy ground."""
    ground = np.clip(rng.normal(185, 10, size=(size, size, 1)) + rng.normal(0, 12, size=3), 0, 255)
    clip = np.repeat(ground[None], 5, axis=0)
    for time, frame in enumerate(clip):
        along = 6 + time * (size - 28) // 4
        x, y = [(along, 24), (24, size - 22 - along), (size - 22 - along, 24), (24, along)][move]
        frame[y : y + 16, x : x + 16] = colour
    return clip.astype(np.uint8)


def fake_scores(num_clips: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    noise = rng.normal(size=(2, num_clips, num_clips))
    dual, cross = noise + strength * np.eye(num_clips) + 0.4 * rng.normal(size=(2, 1, num_clips))
    return {"fused": metrics.fuse(dual, cross), "dual": dual, "cross": cross}


def examples(**changes: object) -> Examples:
    nothing = {"groups": None, "filled": (), "token_ids": np.zeros((0, 0), int)}
    return Examples(**nothing | changes)  # type: ignore[arg-type]


def demo_test(rng: np.random.Generator, num_clips: int = 200) -> Examples:
    words = [(list(COLOURS)[index % 4], index // 4 % 4) for index in range(num_clips)]
    return examples(
        captions=[f"a {colour} square {MOVES[move]} over a grainy floor" for colour, move in words],
        clips=dict(enumerate(moving_square(COLOURS[colour], move, rng) for colour, move in words)),
        relevant=np.eye(num_clips, dtype=bool),
        scores=fake_scores(num_clips, 2.7, rng),
    )


def demo_temporal(rng: np.random.Generator, num_groups: int = 12) -> Examples:
    groups = np.repeat(np.arange(num_groups), 4)
    colours = [list(COLOURS)[group % 4] for group in groups]
    return examples(
        captions=[f"the {colour} square {MOVES[index % 4]}" for index, colour in enumerate(colours)],
        clips={index: moving_square(COLOURS[c], index % 4, rng) for index, c in enumerate(colours)},
        relevant=np.eye(len(groups), dtype=bool),
        scores={name: matrix for name, matrix in fake_scores(len(groups), 1.4, rng).items() if name == "cross"},
        groups=groups,
    )


def demo_masked(rng: np.random.Generator) -> list[MaskedCaption]:
    masked = []
    for index, (colour, rgb) in enumerate([*COLOURS.items(), *COLOURS.items()][:6]):
        words = f"a {colour} square {MOVES[index % 4]} over a grainy floor".split()
        other = list(COLOURS)[(index + 1) % 4]
        right, wrong = [(colour, 0.81), (other, 0.11), ("small", 0.03)], [(other, 0.46), (colour, 0.41), ("a", 0.02)]
        guesses = {1: wrong if index % 3 == 2 else right}
        if index % 2:
            guesses[3] = [(words[3], 0.62), ("spins", 0.2), ("grows", 0.1)]
        masked.append(MaskedCaption(words=words, guesses=guesses, frames=moving_square(rgb, index % 4, rng)))
    return masked


def demo_card(**changes: object) -> Card:
    fields = {
        "protocol": Protocol(task="retrieval", run="runs/tiny", manifest="m.parquet", split="test"),
        "scores": {
            "test/t2v/r1": 0.512,
            "test/t2v/r1_low": 0.44,
            "test/t2v/r1_high": 0.58,
            "test/t2v/median_rank": 1.0,
        },
        "selected_on": "validation/t2v/mean_recall on val",
        "is_selected_on_test": False,
    }
    texts = ("weights", "run_hash", "manifest_hash", "ids_hash", "date", "hardware", "commit")
    counts = dict.fromkeys(("run_seed", "num_videos", "num_queries", "num_missing", "num_undecoded"), 0)
    return Card(**dict.fromkeys(texts, "x") | counts | fields | changes)  # type: ignore[arg-type]


def demo_data(num_clips: int = 200) -> ReportData:
    """Data shaped like that of a real run."""
    rng = np.random.default_rng(0)
    test, temporal = demo_test(rng, num_clips), demo_temporal(rng)
    results = metrics.group_metrics(temporal.scores["cross"], np.asarray(temporal.groups), "temporal")
    results["temporal/t2v/dual_group_r1"] = 0.24
    for score, begin in (("fused", ""), ("dual", "dual"), ("cross", "cross")):
        results |= retrieval_metrics(test.scores[score], test.relevant, "test", score=begin)
    return ReportData(
        name="tiny-seed-0",
        date="2026-11-23",
        hardware="2 CPU cores, 24 GiB",
        commit="0173642",
        config_hash="9f2c11ab",
        manifest_hash="77aa03d1",
        results=results,
        ceilings={
            "test/knows_the_scene": 0.97,
            "test/single_frame": 0.31,
            "temporal/single_frame": 0.25,
            "temporal/knows_the_scene": 1.0,
            "temporal/trained_on_one_frame": 0.26,
        },
        test=test,
        temporal=temporal,
        masked_captions=demo_masked(rng),
        num_clips={"train": 2400, "validation": 120, "test": num_clips, "temporal test": len(temporal.captions)},
        ledger={"truncated": 3, "missing": 7, "no_caption": 1, "empty": 0},
        timings={
            "corpus": 52.0,
            "prepare": 19.0,
            "data_wait": 14.0,
            "step": 318.0,
            "evaluation": 61.0,
            "checkpoint": 4.5,
        },
        protocols=[demo_card()],
    )


@pytest.fixture(scope="module")
def data() -> ReportData:
    return demo_data(num_clips=48)


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    text = render_report(data)
    if "SNPS3_DEMO_REPORT" in os.environ:
        Path(os.environ["SNPS3_DEMO_REPORT"]).write_text(render_report(demo_data()), encoding="utf-8")
    return text


class Tags(HTMLParser):
    """Every tag with its attributes, and whether each one opened is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_holds_every_section(page, data):
    parsed = Tags(page)
    assert parsed.open == []
    for text in (data.name, data.date, data.hardware, data.commit, data.config_hash, data.manifest_hash):
        assert text in page
    for heading in ("Scores", "Examples of retrieval", "order in time", "Masked words", "Rejected samples"):
        assert heading in page
    assert page.count('class="query"') == 5
    assert "The run took 7 min 48 s" in page
    assert "Left out" not in page
    assert f"{100 * data.results['test/t2v/r1']:.1f}\N{NO-BREAK SPACE}%" in page


def test_cards_that_come_later_take_their_place_in_the_page(page, data):
    assert with_protocols(page, data.protocols) == page
    later = demo_card(protocol=dataclasses.replace(demo_card().protocol, split="<val>"), is_selected_on_test=True)
    changed = with_protocols(page, [*data.protocols, later])
    assert "retrieval on &lt;val&gt;" in changed
    assert "chosen on the same clips" in changed
    assert "chosen on the same clips" not in page
    assert Tags(changed).open == []
    assert with_protocols(changed, data.protocols) == page
    with pytest.raises(ValueError, match="another version"):
        with_protocols("<html></html>", [later])


def test_nothing_is_fetched_and_no_script_runs(page):
    for tag, attributes in Tags(page).tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    assert re.findall(r"url\((?!data:|#)", page) == []
    assert "@import" not in page


def test_the_real_size_stays_below_3_mb():
    assert len(render_report(demo_data()).encode()) < 3_000_000


def test_every_picture_has_a_text_instead(page):
    for tag, attributes in Tags(page).tags:
        if tag == "img":
            assert attributes["alt"]
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag == "svg":
            assert attributes["aria-hidden"] == "true"


def test_captions_of_strangers_are_text_and_nothing_else(data):
    evil = "<script>alert(1)</script>\"' onload=x & $x_1$ {{ 7 * 7 }} </style>"
    masked = MaskedCaption(words=[evil, "b"], guesses={1: [(evil, 0.5)]}, frames=data.masked_captions[0].frames)
    changed = dataclasses.replace(
        data,
        name=evil,
        hardware=evil,
        test=dataclasses.replace(data.test, captions=[evil] * len(data.test.captions)),
        temporal=dataclasses.replace(data.temporal, captions=[evil] * len(data.temporal.captions)),
        masked_captions=[masked],
        ceilings={f"test/{evil}": 0.5},
        ledger={evil: 1},
        timings={evil: 1.0},
        num_clips={evil: 1},
    )
    page = render_report(changed)
    tags = Tags(page).tags
    assert not any(tag == "script" for tag, _ in tags)
    assert not any("onload" in attributes for _, attributes in tags)
    assert page.count("</style>") == render_report(data).count("</style>")
    assert "{{ 7 * 7 }}" in page


def test_an_empty_run_says_what_is_missing():
    page = render_report(ReportData(name="x", date="", hardware="", commit="", config_hash="", manifest_hash=""))
    assert Tags(page).open == []
    assert page.count("Left out") == 6
    assert "the ledger of rejected samples is empty" in page


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ReportData) if field.name != "name"])
def test_each_part_may_be_missing(data, name):
    field = next(field for field in dataclasses.fields(ReportData) if field.name == name)
    default = field.default if field.default is not dataclasses.MISSING else {}
    empty = "" if isinstance(getattr(data, name), str) else default
    assert Tags(render_report(dataclasses.replace(data, **{name: empty}))).open == []


def test_the_right_clip_is_shown_even_when_it_comes_last():
    rng = np.random.default_rng(1)
    test = demo_test(rng, 12)
    worst = dataclasses.replace(test, scores={"dual": rng.normal(size=(12, 12)) - 100 * np.eye(12)})
    page = render_report(dataclasses.replace(demo_empty(), test=worst))
    assert page.count("right clip on place 12 of 12") == 5
    assert page.count('class="hit right far"') == 5
    assert "found first" not in page


def demo_empty() -> ReportData:
    return ReportData(name="x", date="", hardware="", commit="", config_hash="", manifest_hash="")


def test_constant_scores_still_make_a_page():
    rng = np.random.default_rng(1)
    test = dataclasses.replace(demo_test(rng, 12), scores={"dual": np.zeros((12, 12))})
    temporal = dataclasses.replace(demo_temporal(rng, 2), scores={"cross": np.zeros((8, 8))})
    page = render_report(dataclasses.replace(demo_empty(), test=test, temporal=temporal))
    assert "nan" not in re.sub(r"base64,[^)\"]*", "", page).lower().replace("financ", "")
    assert "6.5" in page


def test_a_still_image_and_wide_frames_are_shown_too():
    rng = np.random.default_rng(1)
    still = examples(
        captions=["a", "b"],
        clips=dict(enumerate(rng.integers(0, 255, size=(2, 1, 40, 90, 3), dtype=np.uint8))),
        relevant=np.eye(2, dtype=bool),
        scores={"dual": np.eye(2)},
    )
    assert "--n:1;--w:90;--h:40" in render_report(dataclasses.replace(demo_empty(), test=still))


def test_a_chart_is_xml_whose_lines_end_where_their_values_are():
    lines = [[(step, 1 / step) for step in range(1, 2000)], [(10, 0.5), (20, float("nan")), (1999, 2.0)]]
    svg = figures.line_chart(lines, x_label="<steps>", width=400, height=200)
    assert len(svg) < 6_000
    chart = ET.fromstring(svg)
    assert [text.text for text in chart.iter("text")][-1] == "<steps>"
    first, second = (line.attrib for line in chart.iter("polyline"))
    assert (first["stroke"], second["stroke"]) == ("var(--c1)", "var(--c2)")
    places = [tuple(map(float, point.split(","))) for point in second["points"].split()]
    assert len(places) == 2  # what is no number is left out
    assert places[-1] == (400 - 8, figures.TOP)  # the highest value at the last step: the upper right corner
    middle = (figures.TOP + 200 - figures.BOTTOM) / 2  # 0.5 is a quarter of the way from 0 to 2
    assert places[0][1] == pytest.approx((middle + 200 - figures.BOTTOM) / 2, abs=0.06)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0, 20, [0, 5, 10, 15, 20]), (3, 4.2, [3, 3.5, 4]), (-1, 1, [-1, 0, 1])],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, expected):
    assert set(expected) <= {round(tick, 9) for tick in figures.ticks(low, high)}
    assert len(figures.ticks(low, high)) <= 8


def test_an_axis_without_values_or_with_equal_ones_is_drawn_too():
    for points in ([], [(1, 0.0)], [(3, 5.0), (3, 5.0)], [(1, float("inf"))]):
        assert "nan" not in figures.line_chart([points])


def test_logarithmic_axes_show_plain_numbers():
    svg = figures.line_chart([[(1, 10_000), (100, 1)]], is_log=True)
    assert {"1", "100", "10,000"} <= {text.text for text in ET.fromstring(svg).iter("text")}


def test_a_histogram_counts_every_value():
    svg = figures.histogram(np.array([1.0, 1.0, 2.0, 3.0]), "words")
    (line,) = ET.fromstring(svg).iter("polyline")
    heights = {float(point.split(",")[1]) for point in line.attrib["points"].split()}
    assert len(heights) == 3  # none, one and two values
    assert min(heights) == figures.TOP


def test_thinning_keeps_the_mean():
    values = np.random.default_rng(0).normal(size=(2400, 2))
    assert figures.thinned(values.tolist(), 240).mean() == pytest.approx(values.mean())
    assert len(figures.thinned(values.tolist(), 240)) == 240


def test_filmstrips_get_coarser_until_they_fit():
    noise = np.random.default_rng(0).integers(0, 255, size=(8, 5, 96, 96, 3), dtype=np.uint8)
    fine = sum(map(len, figures.filmstrips(noise, max_bytes=10**9)))
    assert sum(map(len, figures.filmstrips(noise, max_bytes=fine // 4))) <= fine // 4
