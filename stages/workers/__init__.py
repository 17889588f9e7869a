"""Processes of their own that run models, and the client that talks to them."""
