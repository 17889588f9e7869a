"""Onward beside Microsoft Olive and Optimum: the parts of benchmarks/against_peers.py."""
