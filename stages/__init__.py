"""The pipeline, one module per DVC stage. A stage reads files, and writes files and one typed report."""
