"""The paper's ablations over seeds: `ray job submit -- python jobs/ablate.py III --name NAME [-- PRESET …]`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.experiments.ablation import main

if __name__ == "__main__":
    sys.exit(main())
