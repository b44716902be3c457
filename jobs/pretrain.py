"""Pre-train one model and report on it: `ray job submit -- python jobs/pretrain.py PRESET --name NAME …`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.launch.driver import main

if __name__ == "__main__":
    sys.exit(main())
