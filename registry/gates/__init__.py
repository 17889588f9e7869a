"""What an environment requires of a version, and the checks that judge it. Nothing here reads a store."""
