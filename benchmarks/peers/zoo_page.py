"""Compare the results of the real models with their targets, and write the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import geometric_mean

from benchmarks.peers.judging import NOT_MEASURED, Row, best_peer
from benchmarks.peers.results import Hosts, Measured, Result
from benchmarks.peers.writing import machine, overview, result_table, row_line

MODELS = {
    "magika": "magika (file types, Keras)",
    "ppocr_rec": "PP-OCRv6 recognition (PaddlePaddle)",
    "silero": "silero-vad (stateful)",
    "dnsmos": "DNSMOS (regression, Keras)",
    "minilm": "MiniLM (PyTorch, transformers)",
    "crepe": "CREPE tiny (PyTorch)",
}

# The targets.
SPEED = {"AMX": 3.0, "AVX512-VNNI": 1.6, "AVX2": 1.6}
PEERS_RATIO, NO_WORSE = 0.85, 1.02
CHANGED = 0.01
SECONDS = 600


def rows(kind: str, measured: Measured) -> Iterator[Row]:
    """Every figure on one kind of host."""
    found = {name: measured.results[name] for name in MODELS if name in measured.results}
    timed = {name: result for name, result in found.items() if result.entry(result.best).counts}
    missing = [f"{name}: {measured.not_measured.get(name, NOT_MEASURED)}" for name in MODELS if name not in timed]
    whole = not missing
    text = f"{len(timed)} of {len(MODELS)}" + "".join(f"; {one}" for one in missing)
    yield Row("Models that pass and are released", "all", text, whole if found else None)
    if not timed:
        return
    changed = {name: result.changed for name, result in timed.items() if result.changed is not None}
    worst = max(changed, key=lambda name: changed[name] or 0, default="")
    text = f"at most {changed[worst]:.2%} ({worst})" if worst else NOT_MEASURED
    yield Row("Task outcomes that change", f"{CHANGED:.0%} or less", text, _all(changed.values(), whole))
    ratios = {name: result.entry(result.best).to_plain["all"] for name, result in timed.items()}
    speed, wanted = 1 / geometric_mean(ratio.value for ratio in ratios.values()), SPEED.get(kind, 1.6)
    figure = "Times as fast as the plain export on the CPU provider, geometric mean"
    yield Row(figure, f"{wanted} or more", f"{speed:.2f}", speed >= wanted if whole else None)
    slower = [f"{name} {ratio.value:.3f}" for name, ratio in ratios.items() if ratio.low > 1]
    yield Row("Slower than the plain export", "none", ", ".join(slower) or "none", not slower)
    peers = {name: best_peer(result)[1].onward_to_it["all"] for name, result in timed.items()}
    mean = geometric_mean(ratio.value for ratio in peers.values())
    figure = "Latency over the fastest peer's, geometric mean"
    yield Row(figure, f"{PEERS_RATIO} or less", f"{mean:.3f}", mean <= PEERS_RATIO if whole else None)
    worse = [f"{name} ({r.low:.3f} to {r.high:.3f})" for name, r in peers.items() if r.low > NO_WORSE]
    yield Row("No model has a whole interval above", f"{NO_WORSE}", ", ".join(worse) or "none", not worse)
    longest = max(timed, key=lambda name: sum(timed[name].stages.values()))
    seconds = sum(timed[longest].stages.values())
    text = f"at most {seconds:.0f} s ({longest})"
    yield Row("All stages of a model", f"{SECONDS} s or less", text, seconds <= SECONDS)


def page(hosts: Hosts) -> str:
    """The whole page: for each kind of host the targets, an overview, and one table per model."""
    lines = ["# Real models", ""]
    lines += [
        "Made by `python -m benchmarks.zoo`, with default settings and all runtimes. Latencies are medians of all",
        "calls, in milliseconds. Ratios use the medians of the fastest quarter of each file's rounds. Intervals are",
        "95 % bootstrap intervals; below 1 is faster. A peer that breaks the budget counts as the plain export.",
    ]
    for kind, measured in hosts.root.items():
        lines += ["", f"## {kind}", "", machine(measured), ""]
        lines += ["| figure | target | measured | met |", "|---|---|---|---|"]
        lines += [row_line(row) for row in rows(kind, measured)]
        lines += ["", *overview(measured, MODELS)]
        for name, title in MODELS.items():
            if name in measured.results:
                lines += ["", *result_table(measured.results[name], title, level=3), *_change(measured.results[name])]
    return "\n".join(lines) + "\n"


def _change(result: Result) -> list[str]:
    return [] if result.changed is None else ["", f"Task outcomes that change: {result.changed:.2%}."]


def _all(shares: Iterable[float | None], whole: bool) -> bool | None:
    values = [share for share in shares if share is not None]
    if any(share > CHANGED for share in values):
        return False
    return True if whole and values else None
