"""Evidence with everything that a report shows, without running a stage: many variants, failures, hostile names."""

from __future__ import annotations

from onward.registry.evidence.headroom import Headroom, OperatorShare
from onward.registry.evidence.records import (
    Callers,
    CaseResult,
    Choice,
    Expectation,
    FileDigest,
    FirstDivergence,
    GraphInfo,
    Latency,
    LayerCost,
    Machine,
    Measurement,
    OutputComparison,
    OutputFidelity,
    OutputKind,
    Ratio,
    RuntimeState,
    Scenarios,
    Split,
    SweepPoint,
    TensorSpec,
    TradeOff,
    TradePoint,
    Variant,
    Winner,
)
from onward.registry.evidence.reports import (
    BenchmarkReport,
    DataReport,
    Evidence,
    ExportReport,
    OptimizeReport,
    PublishReport,
    QuantizeReport,
    SelectReport,
    TrainReport,
    VerifyReport,
)
from onward.registry.report.distributions import Distribution
from onward.registry.report.material import Material

CPU = "CPUExecutionProvider"
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "ort_transformers-int8-static-percentile-smoothquant-per_channel-keep12-tuned-for-a-machine-with-a-long-name"
SIZES = ("b1", "b32")


def make_material(
    model: str = "toy", variants: int = 4, quality: bool = True, hostile: str = "", failed: str = "", scale: float = 1.0
) -> Material:
    """Evidence of `model` with `variants` measured variants: the second one is chosen, if there is one.

    `hostile` becomes part of every name and reason. `failed` is the reason for which the export failed. `scale` changes
    the latencies of this version.
    """
    if failed:
        return Material(model, _failed(model, failed))
    names = ["plain", *(f"variant-{place}{hostile}" for place in range(1, variants))]
    if variants > 2:
        names[2] = f"{LONG}{hostile}"
    measurements = [_measurement(name, place, quality, scale, hostile) for place, name in enumerate(names)]
    chosen = names[min(1, variants - 1)]
    choices = [_choice(one, place, one.variant == chosen, quality, hostile) for place, one in enumerate(measurements)]
    won = next(one for one in measurements if one.variant == chosen)
    winner = Winner(variant=chosen, runtime="cpu", provider=CPU, p50_ms=0.5, files=won.files)
    graph = GraphInfo(
        ir_version=10,
        producer="pytorch",
        opsets={"ai.onnx": 20},
        parameters=12345,
        nodes=9,
        size_bytes=900_000,
        inputs=[TensorSpec(name=f"image{hostile}", dtype="float32", shape=["batch", 1, 28, 28], about="grey levels")],
        outputs=[TensorSpec(name=f"logits{hostile}", dtype="float32", shape=["batch", 10])],
        operators={"Conv": 4, "Relu": 4, f"Gemm{hostile}": 1},
    )
    evidence = Evidence(
        model=model,
        train=TrainReport(
            model=model, status="passed", how="trained", weights=_file("model.safetensors"), quality=0.97
        ),
        data=DataReport(
            model=model,
            status="passed",
            splits=[Split(name="evaluation", samples=300, file=_file("evaluation.npz"))],
            expectations=[Expectation(split="evaluation", expectation=f"rows{hostile}", success=True, observed="300")],
        ),
        export=ExportReport(
            model=model,
            status="passed",
            how="dynamo",
            files=[_file("model.onnx", 900_000)],
            graph=graph,
            findings=[f"folded{hostile}"],
        ),
        verify=VerifyReport(
            model=model,
            status="passed",
            reference="toy in PyTorch",
            rtol=1e-3,
            atol=1e-5,
            cases=_cases(hostile),
            kinds=[OutputKind(output=f"logits{hostile}", kind="scores", axis=1, reason="named logits")],
            divergence=FirstDivergence(case="large@b3", operator="Conv", value=f"conv{hostile}", difference=1e-3),
        ),
        optimize=OptimizeReport(
            model=model,
            status="passed",
            variants=[
                Variant(
                    name=f"odd{hostile}", base="plain", technique="odd", status="failed", reason=f"differs{hostile}"
                ),
                Variant(name="never", base="plain", technique="odd", status="not attempted", reason="no attention"),
            ],
        ),
        quantize=QuantizeReport(
            model=model, status="passed", reference_quality=0.97 if quality else None, tradeoffs=[_tradeoff(hostile)]
        ),
        benchmark=BenchmarkReport(
            model=model,
            status="passed",
            rounds=30,
            search_seconds=12.5,
            reference=_measurement("reference", 0, quality, 2 * scale, ""),
            measurements=measurements,
            machine=Machine(
                cpu=f"Some CPU{hostile}", instruction_sets=["avx2"], cores=2, memory_gb=8, system="Linux x86_64"
            ),
            runtimes=[
                RuntimeState(runtime="cpu", usable=True, version="1.32.0"),
                RuntimeState(runtime="cuda", usable=False, reason=f"no device{hostile}"),
            ],
            headroom=[
                Headroom(
                    variant=chosen,
                    runtime="cpu",
                    precision="int8",
                    size="b1",
                    p50_ms=0.5,
                    multiplications=10,
                    bytes=10,
                    peak_gmacs=50,
                    bandwidth_gbs=9,
                    bound_ms=0.1,
                    share=0.2,
                    operators=[OperatorShare(operator="Conv", share=0.6, products=True)],
                )
            ],
        ),
        select=SelectReport(
            model=model,
            status="passed",
            variant=chosen,
            runtime="cpu",
            files=won.files,
            winners=[winner],
            quality_measure="quality" if quality else "",
            quality_budget=0.01 if quality else None,
            choices=choices,
        ),
    )
    published = PublishReport(
        model=model,
        status="passed",
        run_id="0" * 32,
        version=3,
        sha256="ab" * 32,
        context={"git_commit": "c" * 40, "git_dirty": "false", "version_torch": "2.13.0"},
        inputs=graph.inputs,
        outputs=graph.outputs,
        operators={"QLinearConv": 4, "Relu": 3},
    )
    sampled = [
        Distribution("cpu", one.variant, latency.size, 900, 0.8 * p50, 0.9 * p50, p50, 1.2 * p50, 1.6 * p50)
        for one in measurements
        for latency in one.latencies
        for p50 in [latency.p50_ms]
    ]
    return Material(model, evidence, published, distributions=tuple(sampled))


def _failed(model: str, reason: str) -> Evidence:
    blocked = {"model": model, "status": "not attempted", "reason": "export failed"}
    return Evidence(
        model=model,
        train=TrainReport(model=model, status="passed", how="trained"),
        data=DataReport(model=model, status="passed"),
        export=ExportReport(model=model, status="failed", reason=reason),
        verify=VerifyReport.model_validate(blocked),
        optimize=OptimizeReport.model_validate(blocked),
        quantize=QuantizeReport.model_validate(blocked),
        benchmark=BenchmarkReport.model_validate(blocked),
        select=SelectReport.model_validate(blocked),
    )


def _file(path: str, size: int = 400_000) -> FileDigest:
    return FileDigest(path=path, sha256="0123456789abcdef" * 4, size_bytes=size)


def _measurement(name: str, place: int, quality: bool, scale: float, hostile: str) -> Measurement:
    """The variants differ in latency; every fifth one left the search early."""
    value = 1.0 if name in ("plain", "reference") else 0.5 + 0.03 * place
    ratio = Ratio(value=value, low=value * 0.93, high=value * 1.05) if value != 1 else Ratio(value=1, low=1, high=1)
    if place % 5 == 4:
        return Measurement(
            variant=name,
            runtime="cpu",
            provider=CPU,
            precision="int8",
            status="not attempted",
            reason=f"dropped in screening{hostile}",
            ratios={"b1": ratio, "all": ratio},
        )
    latencies = [
        Latency(
            size=size,
            sizes={"batch": int(size[1:])},
            samples=900,
            warmup=9,
            mean_ms=p50,
            std_ms=0.1,
            min_ms=0.7 * p50,
            max_ms=3 * p50,
            p50_ms=p50,
            p90_ms=1.5 * p50,
            p95_ms=1.6 * p50,
            p99_ms=None,
            throughput=1000 / p50,
        )
        for size in SIZES
        for p50 in [0.5 * value * scale * (1 if size == "b1" else 9)]
    ]
    scenarios = None
    if place < 2 and name != "reference":
        scenarios = Scenarios(
            sweep=[
                SweepPoint(sizes={"batch": batch}, p50_ms=0.4 * batch**0.5, throughput=2500 * batch**0.5)
                for batch in (1, 2, 4, 8, 16)
            ],
            knee={"batch": 8},
            callers=[
                Callers(callers=callers, samples=900, p50_ms=0.4, p95_ms=0.9, throughput=2000 * callers**0.7)
                for callers in (1, 2, 4)
            ],
            cold_start_ms=350.0,
        )
    lost = OutputFidelity(
        output=f"logits{hostile}",
        kind="scores",
        measure="share of changed answers",
        value=0.004,
        low=0.001,
        high=0.02,
        limit=0.01,
        holds=True,
    )
    return Measurement(
        variant=name,
        runtime="cpu",
        provider=CPU,
        precision="float32" if place < 2 else "int8",
        status="passed",
        files=[_file(f"{name}.onnx", 900_000 - 10_000 * place)],
        peak_memory_mb=70.0,
        parity=_cases(hostile)[:1] if place < 2 else [],
        quality=0.97 - 0.0004 * place if quality else None,
        fidelity=[lost] if place else [],
        latencies=latencies,
        ratios={**dict.fromkeys(SIZES, ratio), "all": ratio},
        scenarios=scenarios,
    )


def _choice(one: Measurement, place: int, chosen: bool, quality: bool, hostile: str) -> Choice:
    return Choice(
        variant=one.variant,
        runtime="cpu",
        chosen=chosen,
        on_front=chosen,
        tied=place == 2,
        reason="the fastest within the budget" if chosen else f"slower than another one{hostile}",
        ratio=one.ratios.get("all"),
        quality_drop=0.0012 * (place - 1) if quality and one.latencies else None,
        quality_budget=0.01 if quality else None,
        quality_measure="quality" if quality else "",
    )


def _cases(hostile: str) -> list[CaseResult]:
    def compared(value: float, snr: float, **more: object) -> OutputComparison:
        return OutputComparison.model_validate(
            {"output": f"logits{hostile}", "verdict": "ok", "max_abs": value, "snr_db": snr, **more}
        )

    bad = compared(0.3, 20.0, verdict="out of tolerance", reason=f"12 % of elements{hostile}")
    return [
        CaseResult(case="normal0@b1", seed=1, sizes={"batch": 1}, verdict="ok", outputs=[compared(1e-7, 124.0)]),
        CaseResult(case="zeros@b3", seed=1, sizes={"batch": 3}, verdict="ok", outputs=[compared(0.0, float("inf"))]),
        CaseResult(case=f"large@b3{hostile}", seed=1, sizes={"batch": 3}, verdict="out of tolerance", outputs=[bad]),
        CaseResult(
            case="empty@b0", seed=1, sizes={"batch": 0}, probe=True, verdict="aborted", reason=f"signal{hostile}"
        ),
    ]


def _tradeoff(hostile: str) -> TradeOff:
    return TradeOff(
        variant=f"variant-1{hostile}",
        chosen="variant-1-keep1",
        layers=[
            LayerCost(value=f"conv{place}", operator="Conv", module=f"block.{place}{hostile}", snr_db=30 + 2.0 * place)
            for place in range(20)
        ],
        points=[
            TradePoint(float_layers=0, quality=0.9, holds=False),
            TradePoint(float_layers=1, quality=0.97, holds=True),
        ],
    )
