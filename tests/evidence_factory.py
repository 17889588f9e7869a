"""Evidence of a small working model, as the stages would produce it, without running them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onward.registry.artifact import onnx_file
from onward.registry.evidence.records import (
    CaseResult,
    Choice,
    FileDigest,
    Latency,
    Measurement,
    OutputComparison,
    Ratio,
    Split,
    TensorSpec,
    Variant,
    Winner,
)
from onward.registry.evidence.reports import (
    BenchmarkReport,
    DataReport,
    Evidence,
    ExportReport,
    OptimizeReport,
    QuantizeReport,
    SelectReport,
    TrainReport,
    VerifyReport,
    save,
)
from onward.registry.tracking.recorder import Publication, publish
from tests.onnx_models import linear

CPU = "CPUExecutionProvider"
STARTED, ENDED = "2026-11-27T03:00:00+00:00", "2026-11-27T03:02:05+00:00"


def make_publication(
    root: Path, model: str = "toy", p50: float = 1.0, scale: float = 1.0, **changes: Any
) -> Publication:
    """A publication of `model` in `root` with the plain export and the chosen variant `fast`.

    `p50` changes the measurement but not the bytes; `scale` changes the bytes. `failed` names a failed stage. `chosen`
    is the ONNX file of the variant `fast`, and `answers` are its recorded outputs y for x of shape [4, 4].
    """
    failed, chosen, answers = (changes.pop(name, None) for name in ("failed", "chosen", "answers"))
    plain, fast = (linear(_folder(root, model, n) / f"{n}.onnx", scale=s) for n, s in (("plain", 1), ("fast", scale)))
    files = {"plain": [FileDigest.of(plain, root)]}
    fast = chosen or fast
    files["fast"] = [FileDigest.of(path, root) for path in onnx_file.files(fast)]
    case = CaseResult(
        case="normal0@b1", seed=1, sizes={"batch": 1}, verdict="ok",
        outputs=[OutputComparison(output="y", verdict="ok", max_abs=1e-7, mean_abs=1e-8, max_rel=1e-6, share_out=0.0)],
    )  # fmt: skip

    def measurement(name: str, ratio: float) -> Measurement:
        latency = Latency(
            size="b1", sizes={"batch": 1}, samples=700, warmup=3, mean_ms=p50 * ratio, std_ms=0.1, min_ms=0.5, max_ms=2,
            p50_ms=p50 * ratio, p90_ms=1.5, p95_ms=1.6, p99_ms=None, throughput=1000 / (p50 * ratio),
        )  # fmt: skip
        found = Ratio(value=ratio, low=ratio - 0.01, high=ratio + 0.01)
        return Measurement(
            variant=name, runtime="cpu", provider=CPU, precision="float32", status="passed", files=files.get(name, []),
            session_ms=5.0, peak_memory_mb=60.0, node_share={CPU: 1.0}, parity=[case], quality=0.9, agreement=1.0,
            latencies=[latency], ratios={"b1": found, "all": found},
        )  # fmt: skip

    export = ExportReport(
        model=model, status="passed", how="by hand", files=files["plain"], graph=onnx_file.describe(plain)
    )
    select = SelectReport(
        model=model, status="passed", variant="fast", runtime="cpu", files=files["fast"], quality_measure="quality",
        quality_budget=0.01,
        winners=[Winner(variant="fast", runtime="cpu", provider=CPU, files=files["fast"], p50_ms=0.8)],
        choices=[
            Choice(variant="plain", runtime="cpu", chosen=False, reason="fast is faster", quality_drop=0.0),
            Choice(
                variant="fast", runtime="cpu", chosen=True, reason="the fastest", quality_drop=0.0,
                ratio=Ratio(value=0.8, low=0.79, high=0.81),
            ),
        ],
    )  # fmt: skip
    if failed:
        export = ExportReport(model=model, status="failed", reason=failed)
        select = SelectReport(model=model, status="not attempted", reason="export failed")
    evidence = Evidence(
        model=model,
        train=TrainReport(model=model, status="passed", how="by hand", quality=0.9),
        data=DataReport(
            model=model,
            status="passed",
            splits=[
                Split(
                    name=name,
                    samples=number,
                    file=FileDigest(
                        path=f"build/{model}/data/{name}.npz", sha256=f"{number:064x}", size_bytes=16 * number
                    ),
                )
                for name, number in (("evaluation", 200), ("calibration", 64))
            ],
        ),
        export=export,
        verify=VerifyReport(model=model, status="not attempted" if failed else "passed", cases=[case]),
        optimize=OptimizeReport(
            model=model,
            status="passed",
            variants=[
                Variant(name="fast", base="plain", technique="fast", status="passed", files=files["fast"], nodes=2),
                Variant(name="odd", base="plain", technique="odd", status="failed", reason="differs by 3"),
            ],
        ),
        quantize=QuantizeReport(model=model, status="passed"),
        benchmark=BenchmarkReport(model=model, status="not attempted", reason="export failed")
        if failed
        else BenchmarkReport(
            model=model, status="passed", rounds=3, started=STARTED, ended=ENDED,
            reference=measurement("reference", 2.0),
            measurements=[measurement("plain", 1.0), measurement("fast", 0.8)],
        ),
        select=select,
    )  # fmt: skip
    reports = root / "build" / model
    for name in ("export", "verify", "benchmark", "select"):
        save(getattr(evidence, name), reports / name / "report.json")
    return Publication(
        root=root,
        experiment="tests",
        evidence=evidence,
        params={"export": {"opset": 17}, "inputs": {"x": {"shape": ["batch", 4]}}},
        context={"git_commit": "0" * 40, "git_dirty": "false"},
        bundle=None if failed else _bundle(_folder(root, model, "bundle"), fast, answers),
        reports=reports,
        inputs=[TensorSpec(name="x", dtype="float32", shape=["batch", 4])],
        outputs=[TensorSpec(name="y", dtype="float32", shape=["batch", 3])],
    )


def register(root: Path, model: str = "toy", scale: float = 1.0, **changes: Any) -> int:
    """Publish and return the version number."""
    version = publish(make_publication(root, model, scale=scale, **changes)).version
    assert version is not None
    return version


def _folder(root: Path, model: str, name: str) -> Path:
    folder = root / "files" / model / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _bundle(folder: Path, model: Path, answers: Any = None) -> Path:
    inputs: dict[str, Any] = {"x": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    if answers is None:
        answers = onnxruntime.InferenceSession(str(model), providers=[CPU]).run(["y"], inputs)[0]
    np.savez(folder / "inputs.npz", **inputs)
    np.savez(folder / "outputs.npz", y=answers)
    (folder / "tolerance.json").write_text(json.dumps({"rtol": 1e-3, "atol": 1e-5}))
    return folder
