"""Command lines: parse a preset or a dataclass, report errors in one line, exit status.

May import `jobs.run`, `jobs.launch.preflight`, `jobs.tracking.voice`, `pipeline.nearest` and, to recognise errors,
`cluster.run`, `jobs.launch.lease`, `jobs.training.step` and `pipeline.corpus.ledger`.
"""
