"""Find videos by a sentence: `python jobs/search.py INDEX "a red ring rises"`, in an index of jobs/embed.py."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.inference.query import main

if __name__ == "__main__":
    sys.exit(main())
