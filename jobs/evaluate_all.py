"""Every evaluation of a checkpoint into one table: `ray job submit -- python jobs/evaluate_all.py RUN`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.experiments.suite import main

if __name__ == "__main__":
    sys.exit(main())
