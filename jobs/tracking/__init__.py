"""Records of a run in progress: MLflow runs, Prometheus gauges, the journal of each process, the output of each
command.

May import `cluster.loggers`, `pipeline.foreign_text`, `pipeline.nearest`, `pipeline.redaction` and `pipeline.storage`.
The only room that imports mlflow.
"""
