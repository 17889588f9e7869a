"""`onward fleet`: runs the pipelines of many models on the machines of a Ray cluster."""
