"""README and docs lead where they say: links, headings, files, commands, and how long they may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.is_symlink()),
]
HISTORY = {ROOT / "docs" / "log.md"}
"""Says what was, with the names of its time."""
GENERATED = (ROOT / "docs" / "results", ROOT / "docs" / "reference" / "conformance.md")
MAX_WORDS = 9_000
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a Markdown reader makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


@pytest.mark.parametrize("name", [name for name in NAMES if ROOT / name not in HISTORY])
def test_paths_of_the_repository_exist(name: str) -> None:
    for path in re.findall(
        r"`((?:jobs|pipeline|snps3_model|snps3|cluster|tests|docs)/[\w./-]+)`", (ROOT / name).read_text()
    ):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("name", [name for name in NAMES if ROOT / name not in HISTORY])
def test_commands_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for command in re.findall(r"(?:^|[`\s])snps3 (?!import)([a-z_]+)", text) + re.findall(
        r"jobs[./]([a-z_]+)(?:\.py)? (?:tiny|--)", text
    ):
        assert (ROOT / "jobs" / f"{command}.py").is_file(), command


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_docs_are_short() -> None:
    counted = [page for page in PAGES if page not in HISTORY and not any(map(page.is_relative_to, GENERATED))]
    assert sum(len(page.read_text().split()) for page in counted) <= MAX_WORDS


def test_twenty_questions_are_answered_by_links_or_files() -> None:
    rows = re.findall(r"^\| (\d+)\. .+? \| (.+) \|$", (ROOT / "docs" / "questions.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    assert all("](" in answer or "`" in answer for _, answer in rows)
