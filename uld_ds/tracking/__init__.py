"""MLflow runs: the journal of metrics, their delivery, the record of a run."""
