"""The schema of params.yaml, and how each stage reads its part of it."""
