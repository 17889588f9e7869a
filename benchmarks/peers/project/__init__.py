"""The models and params.yaml of the project that benchmarks/peers/pipeline.py writes."""
