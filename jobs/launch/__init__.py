"""The driver of a run: preflight checks, lease, start, status, stop, results.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `jobs.training`, `jobs.reports`, `cluster`, `pipeline` and
`snps3_model`. `lease` serves the jobs on a corpus too, so it imports only `jobs.tracking.voice` and `pipeline.storage`.
"""
