"""Records measurements and determines what is live. Needs MLflow, but never torch."""
