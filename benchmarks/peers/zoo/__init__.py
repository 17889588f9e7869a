"""The models and params.yaml of the project that benchmarks/zoo.py writes."""
