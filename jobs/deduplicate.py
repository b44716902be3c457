"""Copies in a corpus, and between it and test sets: a report, and a manifest without them."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.corpus.deduplication import main

if __name__ == "__main__":
    sys.exit(main())
