"""Logs, versions and their files in the MLflow store."""
