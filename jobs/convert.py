"""A checkpoint of the published code as first weights of a run of ours."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.inference.conversion import main

if __name__ == "__main__":
    sys.exit(main())
