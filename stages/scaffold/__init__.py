"""Writes and maintains Onward's files in a team's repository."""
