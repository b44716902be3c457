"""What a person starts: each `jobs/NAME.py` is a command, each folder a room that commands call.

Commands import rooms; nobody imports a command.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the folder that the packages are installed in."""
