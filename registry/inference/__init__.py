"""`InferenceSession`: loads a registered version and runs it."""
