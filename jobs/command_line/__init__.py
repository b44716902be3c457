"""Command lines: parse a preset or a dataclass, refuse in one line, exit status.

May import `jobs.run` and `jobs.launch.preflight`.
"""
