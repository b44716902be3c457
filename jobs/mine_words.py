"""Captions of any corpus in; its significant words out, as a Ray Data job. Any number of runs can share them."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.corpus.word_mining import main

if __name__ == "__main__":
    sys.exit(main())
