"""Determines what is live from the entries of an environment's log. Pure logic."""
