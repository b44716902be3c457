"""A driver: what is checked before a run, how it is started, watched, stopped and concluded.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `jobs.training`, `jobs.reports`, `cluster`, `pipeline` and
`snps3_model`.
"""
