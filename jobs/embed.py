"""Embed a folder or bucket of videos: `ray job submit -- python jobs/embed.py RUN --videos FOLDER --out FOLDER`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.inference.index import main

if __name__ == "__main__":
    sys.exit(main())
