"""A model without PyTorch: a scikit-learn pipeline, converted to ONNX by skl2onnx."""

from __future__ import annotations

import numpy as np
import onnx

from models.digits import flat_samples
from models.measures import Array, Arrays


def samples(split: str) -> Arrays:
    """Load a split of the handwritten digits: `features` [n, 784] float32 and `label` [n] int64."""
    digits = flat_samples(split)
    return {"features": digits["image"], "label": digits["label"]}


def accuracy(outputs: Arrays, labels: Array) -> float:
    """Compute the share of samples for which output `digit` [n] equals the label [n]."""
    return float(np.mean(outputs["digit"] == labels))


def train(seed: int) -> onnx.ModelProto:
    """Fit a scaler and a small neural network, and convert both to ONNX.

    Args:
        seed: Seed of the network.

    Returns:
        A model from `features` [batch, 784] to `digit` [batch] and `probabilities` [batch, 10].
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = samples("train")
    network = MLPClassifier(hidden_layer_sizes=(128, 64), max_iter=40, early_stopping=True, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), network)
    pipeline.fit(data["features"].astype(np.float64), data["label"])
    model: onnx.ModelProto = convert_sklearn(
        pipeline,
        name="imported",
        initial_types=[("features", FloatTensorType([None, 784]))],
        final_types=[("digit", None), ("probabilities", None)],
        options={id(pipeline): {"zipmap": False}},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model
