"""What measurements need and the product does not: clusters on one machine, a store with faults, generated corpora,
delivery to ranks, processes watched, indexes.

May import `jobs.ROOT`, `jobs.corpus`, `jobs.inference`, `cluster` and `pipeline`.
"""
