"""Makes the embedded corpus: `python -m jobs.make_corpus --out corpora/embedded`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.corpus.generation import main

if __name__ == "__main__":
    sys.exit(main())
