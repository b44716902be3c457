"""The loggers by which processes of a run speak to the person who started it, and the marks of their lines."""

SAID, PROGRESS, WORKERS = "snps3.said", "snps3.progress", "snps3.workers"
"""Loggers of the driver: lines for people, the line of progress, and all else that workers print."""
MARK, PROGRESS_MARK = "[snps3] ", "[snps3 progress] "
"""What is before lines for people, and before lines of progress, where they pass through somebody's output."""
PACKAGES = ("jobs", "pipeline", "snps3_model", "cluster", "snps3")
"""Loggers of the product: a warning of theirs is one that a person can act on."""
CONNECTS = "cluster.connection"
"""Logger that speaks when a command joins a Ray."""
