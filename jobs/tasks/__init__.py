"""The tasks of a run, with their networks and metrics: captions (retrieval), question answering, multiple choice.

May import `jobs.run`, `cluster.world`, `pipeline` and `snps3_model`; no Ray Train and no MLflow.
"""
