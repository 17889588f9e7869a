"""The models of eight architectures; see params.yaml."""
