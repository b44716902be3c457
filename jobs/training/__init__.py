"""One rank of a run: its job, batches, optimizer step, train loop, checkpoints, and what stops it.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `cluster`, `pipeline` and `snps3_model`.
"""
