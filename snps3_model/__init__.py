"""The network of the paper and its objectives: batches in, losses and scores out.

May import `pipeline.records` and nothing else of ours: no files, no Ray, no process group.
"""
