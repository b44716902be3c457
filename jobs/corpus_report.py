"""A corpus on one HTML page that opens offline: sizes, lengths, words, rejected samples, copies, and some of its clips."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.reports.corpus import main

if __name__ == "__main__":
    sys.exit(main())
