"""What is written down while a run goes: MLflow runs, gauges for Prometheus, the journal of each process, the
voice of each command.

May import `pipeline.foreign_text`, `pipeline.redaction` and `pipeline.storage`. The only room that imports mlflow.
"""
