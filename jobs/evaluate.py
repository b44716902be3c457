"""Score a run on a task and write its protocol card: `ray job submit -- python jobs/evaluate.py RUN …`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.evaluation.scoring import main

if __name__ == "__main__":
    sys.exit(main())
