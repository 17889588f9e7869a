"""What params.yaml may contain, and how a stage reads its part of it."""
