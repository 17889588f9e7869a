"""The techniques that are tried if params.yaml names none, written as in params.yaml.

A later candidate that only changes accuracy is tried if the earlier ones break the quality budget.
"""

from __future__ import annotations

from typing import Any

OPTIMIZERS: tuple[str | dict[str, Any], ...] = (
    "onnxsim",
    "onnxoptimizer",
    {"onnxoptimizer": {"passes": "all"}},
    "onnxslim",
    "onnxscript",
    "ort_fusions",
    {"ort_fusions": {"attention": "partial"}},
    {"ort_fusions": {"norms": "fused"}},
    "ort_transformers",
)

QUANTIZERS: tuple[str | dict[str, Any], ...] = (
    "dynamic",
    {"dynamic": {"reduce_range": True}},
    {"dynamic": {"smooth": 0.5}},
    {"dynamic": {"smooth": 0.5, "reduce_range": True}},
    {"dynamic": {"scales": "per_tensor"}},
    {"dynamic": {"scales": "per_tensor", "reduce_range": True}},
    "static",
    {"static": {"calibrate": "percentile", "correct_bias": True}},
    {"static": {"calibrate": "percentile", "correct_bias": True, "equalize": True}},
    {"static": {"calibrate": "mse", "clip_weights": True, "correct_bias": True}},
    {"static": {"layers": "all"}},
    {"static": {"layers": "all", "calibrate": "percentile", "correct_bias": True}},
    {"static": {"form": "qoperator"}},
    "nncf",
    "weight_only",
    "float16",
    "bfloat16",
)
