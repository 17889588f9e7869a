"""What was measured, recorded; what is live, decided. Needs MLflow, never torch: a serving host installs it alone."""
