"""Identifies the acting person, and makes and checks signatures."""
