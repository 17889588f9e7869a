"""Serves live versions over HTTP with the Open Inference Protocol, and follows their environments."""
