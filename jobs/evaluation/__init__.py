"""Scores of a trained run on a split: protocol cards, overlap with its training clips, the table of published scores.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `jobs.training`, `jobs.corpus.summary`, `cluster`, `pipeline` and
`snps3_model`.
"""
