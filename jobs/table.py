"""The scores of runs beside published ones: `python jobs/table.py RUN [RUN …] [--out table.md]`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.evaluation.leaderboard import main

if __name__ == "__main__":
    sys.exit(main())
