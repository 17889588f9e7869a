"""Load a registered version and run it: `InferenceSession`."""
