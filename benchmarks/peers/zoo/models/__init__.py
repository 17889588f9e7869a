"""The real models of benchmarks/zoo.py.

Each module has `samples` for the data stage, and `changed(original, released)`: the share of task outcomes that differ
between the original's outputs and the released version's, arrays by output name.
"""
