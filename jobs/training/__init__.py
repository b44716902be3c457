"""One rank of a run: its job, batches, optimizer step, train loop, checkpoints, stop requests and watchdog.

May import `jobs.run`, `jobs.tracking`, `jobs.tasks`, `cluster`, `pipeline` and `snps3_model`.
"""
