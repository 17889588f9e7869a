"""The requirements of environments, and the checks that judge versions. Nothing here reads a store."""
