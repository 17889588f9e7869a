"""The pipeline: one file a DVC stage. A stage reads files and writes files and one typed report."""
