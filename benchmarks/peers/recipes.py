"""The recipes of each peer for each architecture: what its documentation recommends for a CPU.

Without a recipe, no peer adapts to the model: `olive optimize --precision int8` calibrates every model with text
from the internet, and `optimum-cli onnxruntime quantize` requires a recipe. So each peer runs every recipe that a user
would find in its manual, and its best result within the budget counts. OpenVINO reads the plain export with its default
precision, and runs the graph that NNCF quantises. torch.compile has no files; measuring.py starts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OLIVE, OPTIMUM, OPENVINO, TORCH = "olive", "optimum", "openvino", "torch.compile"
INSTALLED = (OLIVE, OPTIMUM, OPENVINO)  # each in an environment of its own
PEERS = (*INSTALLED, TORCH)
TITLES = {OLIVE: "Olive", OPTIMUM: "Optimum", OPENVINO: "OpenVINO"}

ARCHITECTURES = {
    "minilm": "MiniLM",
    "vit": "ViT-small",
    "resnet18": "ResNet-18",
    "mobilenet": "MobileNet-V2",
    "lstm": "LSTM",
    "tcn": "TCN",
    "classifier": "MLP",
    "cnn": "small CNN",
}

# The options that OrtTransformersOptimization needs for a graph.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "minilm": {"model_type": "bert", "num_heads": 12, "hidden_size": 384},
    "vit": {"model_type": "vit", "num_heads": 6, "hidden_size": 384},
}
CALIBRATED = ("resnet18", "mobilenet", "tcn", "cnn", "vit", "magika", "ppocr_rec", "dnsmos", "crepe")
FROM_HUB = ("minilm",)  # has a folder in the format of the Hugging Face hub, which Olive can export


@dataclass(frozen=True)
class Recipe:
    """One recipe of one peer.

    Attributes:
        peer: the peer's key.
        name: of the recipe.
        passes: Olive's passes, with their options.
        options: of the peer's command.
        hub: start from the PyTorch model in a hub folder instead of the plain export.
        calibrated: whether the recipe uses calibration samples.
    """

    peer: str
    name: str
    passes: tuple[dict[str, Any], ...] = ()
    options: tuple[str, ...] = ()
    hub: bool = False
    calibrated: bool = field(default=False)


_DYNAMIC = {"type": "OnnxDynamicQuantization", "precision": "int8", "per_channel": True}
_PEEPHOLE = {"type": "OnnxPeepholeOptimizer"}
_EXPORT = {"type": "OnnxConversion", "use_dynamo_exporter": True, "target_opset": 20}


def recipes(architecture: str, stateful: bool = False, hub: bool = True) -> list[Recipe]:
    """The recipes for an architecture.

    Args:
        architecture: its key.
        stateful: whether its samples are sequences, with which no peer can calibrate.
        hub: whether there is a folder in the format of the Hugging Face hub.
    """
    found = [
        Recipe(OPENVINO, "default"),
        Recipe(OLIVE, "dynamic", (_PEEPHOLE, _DYNAMIC)),
        Recipe(OPTIMUM, "avx2", options=("--per_channel", "--avx2")),
        Recipe(OPTIMUM, "avx512_vnni", options=("--per_channel", "--avx512_vnni")),
    ]
    if architecture in TRANSFORMERS:
        fuse = {"type": "OrtTransformersOptimization", **TRANSFORMERS[architecture]}
        found.append(Recipe(OLIVE, "fused-dynamic", (fuse, _DYNAMIC)))
        if architecture in FROM_HUB and hub:
            found.append(Recipe(OLIVE, "hub-fused-dynamic", (_EXPORT, fuse, _DYNAMIC), hub=True))
    if not stateful:
        transformer = ("--transformer",) if architecture in TRANSFORMERS else ()
        found.append(Recipe(OPENVINO, "nncf", options=transformer, calibrated=True))
    if architecture in CALIBRATED:
        static = {"type": "OnnxStaticQuantization", "precision": "int8", "data_config": "calibration"}
        unsigned = {**static, "activation_type": "uint8", "per_channel": True}
        found.append(Recipe(OLIVE, "static", (_PEEPHOLE, static), calibrated=True))
        found.append(Recipe(OLIVE, "static-uint8", (_PEEPHOLE, unsigned), calibrated=True))
    return found


def olive_config(recipe: Recipe, model: str, script: str, samples: str, folder: str) -> dict[str, Any]:
    """The configuration of `olive run` for a recipe.

    Args:
        recipe: of Olive.
        model: path of an ONNX file, or of a hub folder for a recipe with `hub`.
        script: path of the data script, which reads `samples`.
        samples: path of the calibration samples (.npz).
        folder: for results and cache.
    """
    given: dict[str, Any] = {"type": "OnnxModel", "model_path": model}
    if recipe.hub:
        eager = {"attn_implementation": "eager"}  # the default of `olive optimize`
        given = {"type": "HfModel", "model_path": model, "task": "feature-extraction", "load_kwargs": eager}
    config: dict[str, Any] = {
        "input_model": given,
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "passes": {f"{number}_{step['type']}": step for number, step in enumerate(recipe.passes)},
        "target": "here",
        "no_artifacts": True,
        "output_dir": f"{folder}/made",
        "cache_dir": f"{folder}/cache",
        "log_severity_level": 2,
    }
    if recipe.calibrated:
        config["data_configs"] = [
            {
                "name": "calibration",
                "user_script": script,
                "load_dataset_config": {"type": "recorded", "path": samples},
                "dataloader_config": {"type": "no_auto_batch_dataloader"},
            }
        ]
    return config
