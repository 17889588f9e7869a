"""Compare the measured results with the targets. Pure functions: results in, rows out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import geometric_mean

from benchmarks.peers.recipes import ARCHITECTURES, PEERS
from benchmarks.peers.results import EAGER, ONWARD, Entry, Measured, Result

NOT_MEASURED = "not measured"

# The targets.
MINILM_SPEED = 1.55
ALL_RATIO = 0.85
NO_WORSE = 1.02
RESNET_SPEED, RESNET_BEST_PROVIDER, RESNET_SNR_DB = 1.7, 1.8, 30.0
PREDICT_US = 15.0
CHOICE = 0.03
REPEATS = 5
SEARCH_FACTOR = 3.0
SMALL = ("classifier", "cnn")
SEARCH_STAGES = ("optimize", "quantize", "benchmark", "select")


@dataclass(frozen=True)
class Row:
    """A figure: its target, what was measured, and whether the target is met (None if not measured)."""

    figure: str
    wanted: str
    measured: str
    holds: bool | None


def fastest(result: Result, peer: str) -> Entry | None:
    """A peer's fastest file within the budget; None if it has none."""
    accepted = [entry for entry in result.entries if entry.peer == peer and entry.counts]
    return min(accepted, key=lambda entry: entry.to_plain["all"].value, default=None)


def best_peer(result: Result) -> tuple[str, Entry]:
    """The description and the entry of the fastest peer.

    Each peer counts with its fastest file within the budget, or with the plain export if it has none.
    """
    plain = result.entry("plain")
    each = {peer: fastest(result, peer) or plain for peer in PEERS}
    peer, entry = min(each.items(), key=lambda item: item[1].to_plain["all"].value)
    return (f"the plain export (no {peer} file is within the budget)" if entry is plain else entry.name), entry


def rows(measured: Measured) -> list[Row]:
    """Every figure, in the order of the table."""
    found = [*_minilm(measured), *_all_architectures(measured), *_resnet(measured), *_small(measured)]
    return [*found, _choice(measured), _predict(measured), _search(measured)]


def _minilm(measured: Measured) -> Iterator[Row]:
    figure = "MiniLM: latency over that of the fastest peer (geometric mean over sizes)"
    wanted = "interval reaches 1.00 or below, worst cosine no lower (stretch goal 0.95)"
    speed = "MiniLM: times as fast as the plain export"
    result = measured.results.get("minilm")
    if result is None or not result.entry(result.best).counts:
        why = _why_not(measured, "minilm", result)
        yield Row(figure, wanted, why, None if result is None else False)
        yield Row(speed, f"{MINILM_SPEED} or more", why, None if result is None else False)
        return
    name, peer = best_peer(result)
    onward = result.entry(result.best)
    ratio = peer.onward_to_it["all"]
    cosines = f"worst cosine {_number(onward.cosine)} against {_number(peer.cosine)}"
    no_lower = (onward.cosine or -1.0) >= (peer.cosine or -1.0)
    text = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) of {name}; {cosines}"
    yield Row(figure, wanted, text, ratio.low <= 1.0 and no_lower)
    times = 1 / onward.to_plain["all"].value
    yield Row(speed, f"{MINILM_SPEED} or more", f"{times:.2f}", times >= MINILM_SPEED)


def _all_architectures(measured: Measured) -> Iterator[Row]:
    figure = "Eight architectures: latency over the fastest peer's, geometric mean"
    never = "No architecture has a whole interval above"
    measured_results = {name: measured.results[name] for name in ARCHITECTURES if name in measured.results}
    accepted = {name: result for name, result in measured_results.items() if result.entry(result.best).counts}
    if not accepted:
        yield Row(figure, f"{ALL_RATIO} or less", NOT_MEASURED, None)
        yield Row(never, f"{NO_WORSE}", NOT_MEASURED, None)
        return
    ratios = {name: best_peer(result)[1].onward_to_it["all"] for name, result in accepted.items()}
    mean = geometric_mean(ratio.value for ratio in ratios.values())
    floor = geometric_mean(_with_floor(result) for result in accepted.values())
    whole = len(accepted) == len(ARCHITECTURES)
    note = "" if whole else f", for {len(accepted)} of {len(ARCHITECTURES)} architectures"
    text = f"{mean:.3f}{note} ({floor:.3f} if a peer that is slower than the plain export counts as the plain export)"
    failed = len(measured_results) > len(accepted)
    holds = False if failed else (mean <= ALL_RATIO if whole else None)
    yield Row(figure, f"{ALL_RATIO} or less", text, holds)
    worse = [f"{ARCHITECTURES[n]} ({r.low:.3f} to {r.high:.3f})" for n, r in ratios.items() if r.low > NO_WORSE]
    highest = max(ratio.low for ratio in ratios.values())
    text = ", ".join(worse) or f"none; the highest lower end is {highest:.3f}"
    yield Row(never, f"{NO_WORSE}", text + note, False if worse or failed else (True if whole else None))


def _with_floor(result: Result) -> float:
    """Onward's latency over the best peer's, if the peer's users keep the plain export where int8 is slower."""
    return max(best_peer(result)[1].onward_to_it["all"].value, result.entry(result.best).to_plain["all"].value)


def _resnet(measured: Measured) -> Iterator[Row]:
    result = measured.results.get("resnet18")
    figures = (
        ("ResNet-18: times as fast as the plain export, on the CPU provider", RESNET_SPEED, (ONWARD,)),
        ("ResNet-18: the same on the best provider", RESNET_BEST_PROVIDER, None),
    )
    for figure, wanted, names in figures:
        want = f"{wanted} or more at each size, at {RESNET_SNR_DB:g} dB or better"
        if result is None:
            yield Row(figure, want, _why_not(measured, "resnet18", None), None)
            continue
        ours = [e for e in result.entries if e.to_plain and (e.name in names if names else e.name.startswith(ONWARD))]
        if not ours:
            yield Row(figure, want, _why_not(measured, "resnet18", result), False)
            continue
        entry = min(ours, key=lambda e: e.to_plain["all"].value)
        times = {size: 1 / ratio.value for size, ratio in entry.to_plain.items() if size != "all"}
        exact = entry.snr_db is None or entry.snr_db >= RESNET_SNR_DB  # None: the answers are identical
        text = ", ".join(f"{value:.2f} at {size}" for size, value in times.items())
        text += f"; {'exact' if entry.snr_db is None else f'{entry.snr_db:.1f} dB'}; {entry.name}"
        yield Row(figure, want, text, min(times.values()) >= wanted and exact)


def _small(measured: Measured) -> Iterator[Row]:
    for name in SMALL:
        result = measured.results.get(name)
        slower = f"{ARCHITECTURES[name]}: never slower than the plain export"
        eager = f"{ARCHITECTURES[name]}: faster than PyTorch eager at batch 1"
        if result is None or not result.entry(ONWARD).to_plain:
            why = _why_not(measured, name, result)
            yield Row(slower, "interval reaches 1.00 or below", why, None if result is None else False)
            yield Row(eager, "interval under 1", why, None if result is None else False)
            continue
        ratios = result.entry(ONWARD).to_plain
        text = ", ".join(f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f}) {size}" for size, r in ratios.items())
        yield Row(slower, "interval reaches 1.00 or below", text, all(r.low <= 1.0 for r in ratios.values()))
        ratio = result.entry(EAGER).onward_to_it[result.sizes[0]]
        yield Row(
            eager, "interval under 1", f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})", ratio.high < 1.0
        )


def _choice(measured: Measured) -> Row:
    figure = f"Choice repeated {REPEATS} times: the chosen variant's latency in a long run over the best candidate's"
    wanted = f"within {CHOICE:.0%} each time"
    if not measured.repeats:
        return Row(figure, wanted, measured.not_measured.get("repeats", NOT_MEASURED), None)
    text = ", ".join(f"{repeat.variant} +{repeat.behind:.1%}" for repeat in measured.repeats)
    holds = all(repeat.behind <= CHOICE for repeat in measured.repeats)
    return Row(figure, wanted, text, holds if len(measured.repeats) >= REPEATS or not holds else None)


def _predict(measured: Measured) -> Row:
    figure = "InferenceSession.predict: overhead over session.run, on the MLP (the most expensive form of the call)"
    wanted = f"{PREDICT_US:g} µs or less"
    found = measured.predict_overhead_us
    if found is None:
        return Row(figure, wanted, measured.not_measured.get("predict", NOT_MEASURED), None)
    return Row(figure, wanted, f"{found:.1f} µs", found <= PREDICT_US)


def _search(measured: Measured) -> Row:
    figure = "MiniLM: time of Onward's optimize, quantize, benchmark and select over `olive optimize` and `quantize`"
    wanted = f"{SEARCH_FACTOR:g} times or less"
    result = measured.results.get("minilm")
    if result is None or not result.stages:
        return Row(figure, wanted, _why_not(measured, "minilm", result), None)
    ours = sum(result.stages.get(stage, 0.0) for stage in SEARCH_STAGES)
    each = ", ".join(f"{stage} {result.stages.get(stage, 0.0):.0f}" for stage in SEARCH_STAGES)
    theirs = measured.olive_commands_s
    if not theirs:
        return Row(figure, wanted, f"{ours:.0f} s ({each}); Olive's commands were {NOT_MEASURED}", None)
    factor = ours / theirs
    text = f"{factor:.1f} times: {ours:.0f} s ({each}) against {theirs:.0f} s"
    return Row(figure, wanted, text, factor <= SEARCH_FACTOR)


def _why_not(measured: Measured, architecture: str, result: Result | None) -> str:
    if result is None:
        return measured.not_measured.get(architecture, NOT_MEASURED)
    onward = result.entry(result.best)
    return onward.reason or onward.faults or NOT_MEASURED


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
