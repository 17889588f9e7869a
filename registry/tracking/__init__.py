"""Write the evidence of a pipeline run to MLflow: runs, metrics, datasets, a registered version."""
