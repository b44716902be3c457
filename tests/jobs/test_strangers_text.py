"""Names with markup and cursor codes, and weights with lying headers: through tables, pages, lines and loaders."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import pickle
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from cards import card
from safetensors.torch import save

from jobs.evaluation import leaderboard
from jobs.evaluation.cards import Card, Protocol
from jobs.inference.hub_folder import model_card
from jobs.inference.model import load
from jobs.run.presets import tiny
from jobs.tracking import voice
from jobs.training import checkpoints
from pipeline.corpus.text_files import read_text

MARKUP = "<img src=x onerror=alert(1)>|[x](javascript:alert(2))`\n# heading"
CURSOR = "a\x1b]0;title\x07\x1b[2J\rerror: none\x9b\u202e4pm.exe"
MAX_EXPANDED_BYTES = 2**26
SAVED_RUN = Path(__file__).parent.parent / "data" / "run_v0_1_0"


class Tags(HTMLParser):
    """The tags of a text as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)


def assert_no_markup(markdown: str) -> None:
    assert "alert(1)" in markdown  # the text itself is shown
    assert Tags(markdown).seen == []
    assert "\n# heading" not in markdown
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]\(javascript", markdown)
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) <= 1


def foreign_card() -> Card:
    return card(protocol=Protocol(task="retrieval", run="runs/x", manifest=f"/nowhere/{MARKUP}", split=MARKUP))


def test_a_table_of_scores_shows_names_as_text() -> None:
    assert_no_markup("\n".join([f"## {leaderboard.title_of(foreign_card())}"]))
    assert_no_markup("\n".join(leaderboard.rows(None, [(MARKUP, foreign_card())])))


def test_a_model_card_shows_names_as_text() -> None:
    config = tiny()
    assert_no_markup(model_card("tiny", config.data, config.model, {"retrieval-test": foreign_card()}))


def test_names_with_cursor_codes_write_nothing_else_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    terminal = voice.Terminal(stream)
    terminal.say(CURSOR)
    terminal.show_progress(CURSOR, 0.0)
    voice.say(CURSOR)
    voice.show(CURSOR)
    record = logging.LogRecord("jobs", logging.WARNING, "", 0, "%s", (CURSOR,), None)
    shown = capsys.readouterr()
    for text in (stream.getvalue(), shown.out, shown.err, voice.log_formatter().format(record)):
        assert "4pm.exe" in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_text_of_every_script_and_its_lines_stay(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Ünïcode: 猫 в клипе · “quotes” — 1 %\n\tsecond line"
    voice.show(text)
    assert capsys.readouterr().out == f"{text}\n"


def header(**entry: Any) -> bytes:
    """A safetensors file whose header has one tensor, and 8 bytes of data behind it."""
    words = json.dumps({"weight": entry}).encode()
    return struct.pack("<Q", len(words)) + words + bytes(8)


WHOLE = save({"weight": torch.zeros(2)})
LYING = {
    "nothing": b"",
    "a header of 10⁹ bytes": struct.pack("<Q", 10**9) + b"{}",
    "a header longer than any number": b"\xff" * 16,
    "no JSON": struct.pack("<Q", 4) + b"....",
    "10⁹ numbers": header(dtype="F32", shape=[10**9], data_offsets=[0, 4 * 10**9]),
    "10¹⁸ numbers in 8 bytes": header(dtype="F32", shape=[10**9, 10**9], data_offsets=[0, 8]),
    "offsets behind the end": header(dtype="F32", shape=[2], data_offsets=[8, 16]),
    "an unknown type": header(dtype="F7", shape=[2], data_offsets=[0, 8]),
    "cut": WHOLE[:-1],
}


@pytest.mark.parametrize("data", LYING.values(), ids=LYING.keys())
def test_weights_with_a_lying_header_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(ValueError, match="no whole safetensors file"):
        checkpoints.load_weights(data, torch.nn.Linear(2, 1))


def test_a_model_folder_with_a_lying_header_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    folder = shutil.copytree(SAVED_RUN, tmp_path / "run")
    (folder / "best" / "model.safetensors").write_bytes(LYING["10⁹ numbers"])
    with pytest.raises(ValueError, match=r"best/model\.safetensors is no whole safetensors file"):
        load(str(folder))


@pytest.mark.parametrize(
    ("data", "converted"),
    [
        ("0 a dog runs\n".encode("utf-16-le"), "0 a dog runs\n"),
        ("0 ein Hund läuft\n".encode("cp1252"), "0 ein Hund läuft\n"),
        (pickle.dumps({"caption": "a dog"}), '{"caption": "a dog"}'),
    ],
)
def test_a_remedy_for_a_file_does_what_it_says_and_nothing_that_the_name_says(
    data: bytes, converted: str, tmp_path: Path
) -> None:
    path = tmp_path / "$(touch pwned)`touch pwned`;touch pwned;'.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"iconv|pickle") as refused:
        read_text(str(path))
    (command,) = re.findall(r"(?:iconv|python) .*", str(refused.value))
    subprocess.run(["sh", "-c", command.replace("FILE", "FILE.json")], cwd=tmp_path, check=False)
    written = [file.read_text() for file in tmp_path.iterdir() if file.suffix == ".json"]
    assert (written, (tmp_path / "pwned").exists()) == ([converted], False)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_small_file_that_decompresses_to_much_is_refused(compress: Any, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(compress(bytes(MAX_EXPANDED_BYTES + 1)))
    with pytest.raises(ValueError, match=r"captions.jsonl: .* decompress to more than .*yourself"):
        read_text(str(path))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_compressed_file_is_refused_in_words(compress: Any, tmp_path: Path) -> None:
    path, data = tmp_path / "captions.jsonl", bytearray(compress(bytes(range(256)) * 40))
    for damaged in (data[:-30], data[:20] + bytes(9) + data[29:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"captions.jsonl: damaged .*: copy it again"):
            read_text(str(path))
