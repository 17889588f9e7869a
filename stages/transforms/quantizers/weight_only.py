"""Weight-only quantisation: matrices of 4 or 8 bits in blocks, multiplied with float activations.

It saves bytes on disk, and the time to read a matrix that is used for few rows per call. If matrices fit in a CPU's
cache, or are used for many rows, int8 products are faster.
"""

from __future__ import annotations

from pathlib import Path

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, named, producer_nodes, quiet

OPTIONS = {"bits": (4, 8), "block": (32, 64, 128)}

# Bytes of float32 matrices below which reading them does not limit a call: about a server CPU's last-level cache.
LARGE = 64_000_000


def precision(options: Options) -> str:
    """Return the precision of the weights."""
    return f"int{options['bits']}"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why fewer bytes of weights make nothing faster; empty if they may."""
    if graph.products < LARGE:
        size = f"{graph.products / 1e6:.1f} MB of matrices"
        return f"{size} fit in a CPU's cache: reading them takes no significant time"
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
        accuracy_level=4,  # products in int8, for which CPU kernels are fastest
        nodes_to_exclude=producer_nodes(model, keep),
    )
    quantizer.process()
    save(quantizer.model.model, target)
