"""A prepared corpus packed into few large files, as a Ray Data job: raw bytes, or the clips' frames as JPEG."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.corpus.packing import main

if __name__ == "__main__":
    sys.exit(main())
