"""Measures the loss of a lower-precision graph and compares it with the budget. All stages use this rule.

Every output is judged. The model's own measure (params.yaml: quality or fidelity) judges the outputs that it depends
on. Any other output is judged by its kind (stages/parity/kinds.py). In a model without a measure of its own,
`budget.min_snr_db` and `budget.min_cosine` replace the kinds, if they are set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from onward.registry.evidence.kinds import ANSWERS
from onward.registry.evidence.records import Measurement, OutputFidelity, OutputKind
from onward.stages.config.schema import Agreement, Budget, ModelParams

# Qualities are means over samples. Differences up to this size are rounding in float64.
ROUNDING = 1e-9


class Judged(Protocol):
    """The results over the evaluation set that a Variant and a Measurement have in common."""

    @property
    def precision(self) -> str:
        """Precision of the graph, such as "float32" or "int8"."""

    @property
    def quality(self) -> float | None:
        """Result of the model's own measure; None if it has none."""

    @property
    def agreement(self) -> float | None:
        """Share of samples with the original's top-1 answer; None if no output has one."""

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio, in dB; None if not measured."""

    @property
    def cosine(self) -> float | None:
        """Cosine similarity of the worst sample; None if not measured."""

    @property
    def fidelity(self) -> list[OutputFidelity]:
        """Loss of each output by the measure of its kind."""


class Loss(NamedTuple):
    """A graph's loss by one measure.

    Attributes:
        value: The loss; negative if the graph is better than the original.
        limit: The largest loss allowed.
        measure: Name of the measure.
    """

    value: float
    limit: float
    measure: str

    @property
    def used(self) -> float:
        """The loss as a share of its limit, to compare losses by different measures."""
        if self.limit:
            return self.value / self.limit
        return 0.0 if self.value <= 0 else float("inf")


class Judgement(NamedTuple):
    """How a model's variants are judged.

    Attributes:
        reference_quality: The original's result by the model's own measure; None if it has none.
        budget: The budget in params.yaml.
        kinds: The kind of each output.
        floors: Minimal shares of equal top-1 answers, by precision (params.yaml: tolerance.agreement).
    """

    reference_quality: float | None
    budget: Budget
    kinds: Sequence[OutputKind] = ()
    floors: Agreement | None = None

    @classmethod
    def of(cls, reference_quality: float | None, settings: ModelParams, kinds: Sequence[OutputKind]) -> Judgement:
        """Take the budget and the floors from a model's settings."""
        return cls(reference_quality, settings.budget, kinds, settings.tolerance.agreement)

    def by_kind(self) -> set[str]:
        """Names of the outputs that are judged by their kind."""
        is_explicit = self.budget.min_snr_db is not None or self.budget.min_cosine is not None
        if is_explicit and self.reference_quality is None:
            return set()
        return {kind.output for kind in self.kinds if not kind.by_quality}

    def loss(self, judged: Judged) -> Loss | None:
        """Find the loss that uses the largest share of its limit.

        Args:
            judged: Results of a graph.

        Returns:
            The loss; None if nothing could be measured. A float32 graph without measurements has lost nothing,
            because it passed parity.
        """
        found = list(self._losses(judged))
        if not found and judged.precision == "float32":
            return Loss(0.0, self.budget.quality_drop, "quality")
        return max(found, key=lambda loss: loss.used, default=None)

    def _losses(self, judged: Judged) -> Iterable[Loss]:
        if self.reference_quality is not None and judged.quality is not None:
            yield Loss(self.reference_quality - judged.quality, self.budget.quality_drop, "quality")
        if judged.precision == "float32":
            return  # judged by tolerances, element by element
        if self.budget.min_cosine is not None and judged.cosine is not None and self.reference_quality is None:
            yield Loss(1 - judged.cosine, 1 - self.budget.min_cosine, "1 - the worst cosine")
        for one in judged.fidelity:
            if one.output in self.by_kind():
                yield Loss(one.value, one.limit, f"{one.output}: {one.measure}")

    def faults(self, judged: Judged) -> Iterable[str]:
        """Describe how a graph breaks the budget.

        Args:
            judged: Results of a graph.

        Returns:
            One phrase per violation; none if the graph is within the budget.
        """
        budget, has_measure = self.budget, self.reference_quality is not None
        if has_measure and judged.quality is None:
            yield "its quality could not be measured, so it cannot be compared with the budget"
        elif has_measure and judged.quality is not None and self.reference_quality is not None:
            drop = self.reference_quality - judged.quality
            if not drop <= budget.quality_drop + ROUNDING:
                yield f"quality drops by {drop:.4g}, more than the {budget.quality_drop:g} of budget.quality_drop"
        if judged.precision == "float32":
            return
        by_kind = self.by_kind()
        missing = by_kind - {one.output for one in judged.fidelity}
        if missing:
            yield f"outputs were not measured ({', '.join(sorted(missing))}), so they cannot be judged"
        yield from (str(one) for one in judged.fidelity if one.output in by_kind and not one.holds)
        if budget.min_cosine is not None and judged.cosine is not None and not judged.cosine >= budget.min_cosine:
            yield f"the worst cosine, {judged.cosine:.5f}, is under the {budget.min_cosine:g} of budget.min_cosine"
        if budget.min_snr_db is not None and judged.snr_db is not None and not judged.snr_db >= budget.min_snr_db:
            yield (
                f"the signal-to-noise ratio, {judged.snr_db:.1f} dB, is under the {budget.min_snr_db:g} of "
                "budget.min_snr_db"
            )
        floor = getattr(self.floors, judged.precision, None) if has_measure else None
        if (
            floor is not None
            and judged.agreement is not None
            and judged.agreement < floor
            and _is_significant(judged, floor)
        ):
            yield (
                f"gives the original's answer for {judged.agreement:.1%} of the samples, under the {floor:.0%} of "
                "tolerance.agreement"
            )


def _is_significant(judged: Judged, floor: float) -> bool:
    """Whether the share of changed answers exceeds 1 - `floor` even at the lower end of its confidence interval.

    One changed answer in 96 samples is under a floor of 99 %, but is no evidence.
    """
    shares = [one for one in judged.fidelity if one.measure == ANSWERS]
    return not shares or any(one.low > 1 - floor + ROUNDING for one in shares)


def ceiling_faults(measurement: Measurement, budget: Budget) -> Iterable[str]:
    """Describe which limits of size, latency and memory a variant exceeds, as far as they have been measured.

    Args:
        measurement: The variant's figures.
        budget: The budget in params.yaml.

    Returns:
        One phrase per violation.
    """
    size_mb = sum(file.size_bytes for file in measurement.files) / 1e6
    if budget.size_mb is not None and size_mb > budget.size_mb:
        yield f"{size_mb:.2f} MB is more than the {budget.size_mb:g} of budget.size_mb"
    if budget.latency_ms is not None and measurement.latencies:
        latency = measurement.latencies[0]
        if latency.p50_ms > budget.latency_ms:
            yield (
                f"p50 of {latency.p50_ms:.3g} ms at {latency.size} is more than the "
                f"{budget.latency_ms:g} of budget.latency_ms"
            )
    if budget.memory_mb is not None and (measurement.peak_memory_mb or 0) > budget.memory_mb:
        yield f"{measurement.peak_memory_mb:.0f} MB at peak is more than the {budget.memory_mb:g} of budget.memory_mb"
