"""What a person starts: each `jobs/NAME.py` is a command, each folder a room that commands call.

Commands import rooms; nobody imports a command.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the folder that the packages are installed in."""
WORKPLACE = ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()
"""Where corpora and runs lie that are named by no path: the checkout; with an installed wheel, where it is started."""
