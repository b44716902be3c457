"""A driver: what is checked before a run, how it is started, watched, stopped and concluded.

May import `jobs.evaluation.cards` and every room but `jobs.experiments`, `jobs.inference`, `jobs.corpus` and `jobs.benchmarks`.
"""
