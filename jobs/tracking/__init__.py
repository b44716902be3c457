"""What is written down while a run goes: MLflow runs, gauges for Prometheus, the journal of each process, the
voice of each command.

May import `cluster.loggers`, `pipeline.foreign_text`, `pipeline.nearest`, `pipeline.redaction` and `pipeline.storage`.
The only room that imports mlflow.
"""
