"""Write the evidence of a pipeline run to MLflow: runs, metrics, plots, a registered version."""
