"""Weight-only: matrices of 4 or 8 bits in blocks, multiplied with activations that stay as they are.

What it saves is memory: bytes on disk, and the time to read them where a matrix is used for few rows at a time. Where
matrices fit a CPU's cache, or are used for many rows, int8 products are faster.
"""

from __future__ import annotations

from pathlib import Path

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, named, producer_nodes, quiet

OPTIONS = {"bits": (4, 8), "block": (32, 64, 128)}

# About the last-level cache of a server's CPU: smaller matrices are not what a call waits for.
LARGE = 64_000_000


def precision(options: Options) -> str:
    return f"int{options['bits']}"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Why fewer bytes of weights cannot pay."""
    if graph.products < LARGE:
        size = f"{graph.products / 1e6:.1f} MB of matrices"
        return f"{size} fit in a CPU's cache: reading them is not what takes time"
    return ""


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Quantise the constant matrices of MatMul; needs no calibration."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quiet()
    model = named(source)
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=int(options["bits"]),
        block_size=int(options["block"]),
        is_symmetric=True,
        accuracy_level=4,  # products in int8, which CPU kernels are quickest at
        nodes_to_exclude=producer_nodes(model, keep),
    )
    quantizer.process()
    save(quantizer.model.model, target)
