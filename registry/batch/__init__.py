"""`onward batch`: runs a model over parquet files, on all machines of a Ray cluster."""
