"""Fine-tune a pre-trained run on a task: `ray job submit -- python jobs/finetune.py RECIPE --run RUN --name NAME …`."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.run.recipes import main

if __name__ == "__main__":
    sys.exit(main())
