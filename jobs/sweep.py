"""Sweep masking ratios, loss weights and more: `ray job submit -- python jobs/sweep.py SPACE --name NAME [PRESET …]`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.experiments.sweeps import main

if __name__ == "__main__":
    sys.exit(main())
