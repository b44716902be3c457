"""Command lines: parse a preset or a dataclass, refuse in one line, exit status.

May import `jobs.run`, `jobs.launch.preflight`, `jobs.tracking.voice`, `pipeline.nearest`, and where an error is read
`cluster.run` and `jobs.training.step`.
"""
