"""Tools for measurements, which the product does not need: clusters on one machine, a store with faults, generated
corpora, delivery to ranks, monitoring of processes, indexes.

May import `jobs.ROOT`, `jobs.corpus`, `jobs.inference`, `cluster` and `pipeline`.
"""
