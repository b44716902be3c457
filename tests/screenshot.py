"""Take the picture of the page that the README shows.

python -m tests.screenshot INDEX "a small red cross wobbles and after that a tiny orange square jumps" OUT.png
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from jobs.serving.library import Library
from tests.served import chromium, served

SIZE_PX = {"width": 1280, "height": 720}
NUM_COLOURS = 64


def take(index: str, text: str, out: str) -> None:
    """Ask a question, and write the first screen of the answer as a PNG with few colours."""
    with served(Library.open(index)) as port, chromium() as browser:
        page = browser.new_page(viewport=SIZE_PX)
        page.goto(f"http://127.0.0.1:{port}/?q={quote(text)}")
        page.wait_for_selector("#results article")
        page.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(NUM_COLOURS)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, optimize=True)


if __name__ == "__main__":
    take(*sys.argv[1:4])
