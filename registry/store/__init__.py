"""The log and the files of versions, kept in MLflow."""
