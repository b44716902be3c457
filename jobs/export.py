"""Write a model as a folder in Hugging Face's format: `python jobs/export.py RUN FOLDER`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.inference.hub_folder import main

if __name__ == "__main__":
    sys.exit(main())
