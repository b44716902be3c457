"""Loggers for lines from a run's processes to the user, and the prefixes that mark these lines."""

SAID, PROGRESS, WORKERS = "snps3.said", "snps3.progress", "snps3.workers"
"""Loggers of the driver: lines for the user, the progress line, and all other output of workers."""
MARK, PROGRESS_MARK = "[snps3] ", "[snps3 progress] "
"""Prefixes of lines for the user and of progress lines within the output of a process."""
PACKAGES = ("jobs", "pipeline", "snps3_model", "cluster", "snps3")
"""Loggers of this product: the user can act on their warnings."""
CONNECTS = "cluster.connection"
"""Logger that reports when a command joins a Ray cluster."""
