"""Runs beside each other on one page: `python jobs/compare.py RUN RUN …`, by their names or ids in MLflow."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.reports.comparison import main

if __name__ == "__main__":
    sys.exit(main())
