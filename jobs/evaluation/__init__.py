"""Scores of a trained run on a split: protocol cards, what the run has seen, the table beside published scores.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `jobs.training`, `cluster`, `pipeline` and `snps3_model`.
"""
