"""A driver: what is checked before a run, how it is started, watched, stopped and concluded.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `jobs.training`, `jobs.reports`, `cluster`, `pipeline` and
`snps3_model`. Its lease serves the jobs on a corpus too: it imports `jobs.tracking.voice` and `pipeline.storage` alone.
"""
