"""What a graph of lower precision has lost, and whether that is within the budget: one rule for every stage.

Every output is judged. The model's own measure (params.yaml: quality, or fidelity) judges those that it depends on; any
other output is judged by its kind (stages/parity/kinds.py). `budget.min_snr_db` and `budget.min_cosine`, where they are
set, take the place of kinds in a model that has no measure of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from onward.registry.evidence.kinds import ANSWERS
from onward.registry.evidence.records import Measurement, OutputFidelity, OutputKind
from onward.stages.config.schema import Agreement, Budget, ModelParams

# Qualities are means over samples: two that differ by less than this are equal but for rounding.
ROUNDING = 1e-9


class Judged(Protocol):
    """What a Variant and a Measurement say of their answers over the evaluation set."""

    @property
    def precision(self) -> str: ...
    @property
    def quality(self) -> float | None: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def snr_db(self) -> float | None: ...
    @property
    def cosine(self) -> float | None: ...
    @property
    def fidelity(self) -> list[OutputFidelity]: ...


class Loss(NamedTuple):
    """What decides over a graph: how much it lost, how much it may lose, by which measure."""

    value: float
    limit: float
    measure: str

    @property
    def used(self) -> float:
        """The share of the limit that is used up: what losses by different measures are compared by."""
        if self.limit:
            return self.value / self.limit
        return 0.0 if self.value <= 0 else float("inf")


class Judgement(NamedTuple):
    """How a model's variants are judged.

    Attributes:
        reference_quality: what the original reaches by the model's own measure; None where it has none.
        budget: of params.yaml.
        kinds: what each output is.
        floors: the shares of top-1 answers that lower precision has to keep (params.yaml: tolerance.agreement).
    """

    reference_quality: float | None
    budget: Budget
    kinds: Sequence[OutputKind] = ()
    floors: Agreement | None = None

    @classmethod
    def of(cls, reference_quality: float | None, settings: ModelParams, kinds: Sequence[OutputKind]) -> Judgement:
        """How the variants of a model with these settings are judged."""
        return cls(reference_quality, settings.budget, kinds, settings.tolerance.agreement)

    def by_kind(self) -> set[str]:
        """The outputs that are judged by their kind."""
        explicit = self.budget.min_snr_db is not None or self.budget.min_cosine is not None
        if explicit and self.reference_quality is None:
            return set()
        return {kind.output for kind in self.kinds if not kind.by_quality}

    def loss(self, judged: Judged) -> Loss | None:
        """What decides over a graph: of all that its answers are held to, what uses up most of its limit.

        Returns:
            null where nothing could be measured. A float graph that passed parity lost nothing then. The value is
            negative where the model's own measure finds the graph better than the original.
        """
        found = list(self._losses(judged))
        if not found and judged.precision == "float32":
            return Loss(0.0, self.budget.quality_drop, "quality")
        return max(found, key=lambda loss: loss.used, default=None)

    def _losses(self, judged: Judged) -> Iterable[Loss]:
        if self.reference_quality is not None and judged.quality is not None:
            yield Loss(self.reference_quality - judged.quality, self.budget.quality_drop, "quality")
        if judged.precision == "float32":
            return  # held to tolerances, element by element
        if self.budget.min_cosine is not None and judged.cosine is not None and self.reference_quality is None:
            yield Loss(1 - judged.cosine, 1 - self.budget.min_cosine, "1 - the worst cosine")
        for one in judged.fidelity:
            if one.output in self.by_kind():
                yield Loss(one.value, one.limit, f"{one.output}: {one.measure}")

    def faults(self, judged: Judged) -> Iterable[str]:
        """In words, how a graph's answers break the budget; nothing where they are within it."""
        budget, own = self.budget, self.reference_quality is not None
        if own and judged.quality is None:
            yield "its quality could not be measured, so that it cannot be held to the budget"
        elif own and judged.quality is not None and self.reference_quality is not None:
            drop = self.reference_quality - judged.quality
            if not drop <= budget.quality_drop + ROUNDING:
                yield f"quality drops by {drop:.4g}, more than the {budget.quality_drop:g} of budget.quality_drop"
        if judged.precision == "float32":
            return
        wanted = self.by_kind()
        missing = wanted - {one.output for one in judged.fidelity}
        if missing:
            yield f"what it answers was not measured ({', '.join(sorted(missing))}), so that it cannot be judged"
        yield from (str(one) for one in judged.fidelity if one.output in wanted and not one.holds)
        if budget.min_cosine is not None and judged.cosine is not None and not judged.cosine >= budget.min_cosine:
            yield f"the worst cosine, {judged.cosine:.5f}, is under the {budget.min_cosine:g} of budget.min_cosine"
        if budget.min_snr_db is not None and judged.snr_db is not None and not judged.snr_db >= budget.min_snr_db:
            yield f"{judged.snr_db:.1f} dB of signal to noise is under the {budget.min_snr_db:g} of budget.min_snr_db"
        floor = getattr(self.floors, judged.precision, None) if own else None
        if floor is not None and judged.agreement is not None and judged.agreement < floor and _surely(judged, floor):
            yield f"gives the original's answer to {judged.agreement:.1%} of the samples, {floor:.0%} wanted"


def _surely(judged: Judged, floor: float) -> bool:
    """Whether fewer answers are the original's than `floor` asks for, beyond what few samples leave open. One flip in
    96 samples is under a floor of 99 %, and no evidence."""
    shares = [one for one in judged.fidelity if one.measure == ANSWERS]
    return not shares or any(one.low > 1 - floor + ROUNDING for one in shares)


def ceiling_faults(m: Measurement, budget: Budget) -> Iterable[str]:
    """In words, which of the budget's ceilings a measurement breaks, as far as it has been measured."""
    size_mb = sum(file.size_bytes for file in m.files) / 1e6
    if budget.size_mb is not None and size_mb > budget.size_mb:
        yield f"{size_mb:.2f} MB is more than the {budget.size_mb:g} of budget.size_mb"
    if budget.latency_ms is not None and m.latencies and m.latencies[0].p50_ms > budget.latency_ms:
        yield (
            f"p50 of {m.latencies[0].p50_ms:.3g} ms at {m.latencies[0].size} is more than the "
            f"{budget.latency_ms:g} of budget.latency_ms"
        )
    if budget.memory_mb is not None and (m.peak_memory_mb or 0) > budget.memory_mb:
        yield f"{m.peak_memory_mb:.0f} MB at peak is more than the {budget.memory_mb:g} of budget.memory_mb"
