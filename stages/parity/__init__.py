"""Checks whether two implementations compute the same: test cases, comparison, references and quality."""
