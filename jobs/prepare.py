"""Raw videos and captions in; manifest and ledger of rejected samples out, as a Ray Data job."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.corpus.preparation import main

if __name__ == "__main__":
    sys.exit(main())
