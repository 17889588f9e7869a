"""Records what was measured and decides what is live. Needs MLflow, never torch."""
