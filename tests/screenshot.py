"""Take the pictures that the README shows: of the page, and of the terminal that `log-lines` recorded.

python -m tests.screenshot INDEX "a small red cross wobbles and after that a tiny orange square jumps" OUT.png
python jobs/benchmark.py log-lines > lines.json; python -m tests.screenshot lines.json OUT.png
"""

from __future__ import annotations

import html
import io
import json
import re
import sys
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from jobs.serving.library import Library
from tests.served import chromium, served

SIZE_PX = {"width": 1280, "height": 720}
NUM_COLOURS = 64
TERMINAL_STYLE = (
    "pre { display: inline-block; width: 120ch; white-space: pre-wrap; margin: 0; padding: 16px; "
    "background: #1d1f21; color: #e4e4e4 }"
)


def take(index: str, text: str, out: str) -> None:
    """Ask a question, and write the first screen of the answer as a PNG with few colours."""
    with served(Library.open(index)) as port, chromium() as browser:
        page = browser.new_page(viewport=SIZE_PX)
        page.goto(f"http://127.0.0.1:{port}/?q={quote(text)}")
        page.wait_for_selector("#results article")
        page.wait_for_load_state("networkidle")
        save(page.screenshot(), out)


def take_terminal(lines: str, out: str) -> None:
    """Write the terminal in a file of `log-lines` as a PNG, without the paths of its temporary folder."""
    recorded = json.loads(Path(lines).read_text().splitlines()[-1])["terminal"]
    text = re.sub(r"/\S*/(?=runs/|corpus\b|\.venv/)", "…/", "\n".join(recorded))
    with chromium() as browser:
        page = browser.new_page(viewport=SIZE_PX)
        page.set_content(f"<style>{TERMINAL_STYLE}</style><pre>{html.escape(text)}</pre>")
        save(page.locator("pre").screenshot(), out)


def save(png: bytes, out: str) -> None:
    """Write a PNG with few colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(NUM_COLOURS)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, optimize=True)


if __name__ == "__main__":
    take(*sys.argv[1:4]) if len(sys.argv) == 4 else take_terminal(*sys.argv[1:3])
