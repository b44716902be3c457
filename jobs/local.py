"""The main job on this machine: make the embedded corpus, start a Ray head, submit prepare and pretrain to it."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.launch.local_run import main

if __name__ == "__main__":
    sys.exit(main())
