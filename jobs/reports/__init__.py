"""HTML pages: the report of a run, the comparison of runs, the report of a corpus, and their figures.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `jobs.training`, `jobs.evaluation.cards`, `pipeline` and
`snps3_model`.
"""
