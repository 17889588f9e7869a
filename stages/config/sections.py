"""Sections of params.yaml on one model's weights, samples, checks and measurements; schema.py has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def repository_path(value: str) -> str:
    """Check that a path is relative to params.yaml."""
    # The params stage refuses files outside the repository: the project may be a folder below its top.
    if Path(value).is_absolute():
        raise ValueError(f"{value!r} must be a path relative to params.yaml")
    return value


RepositoryPath = Annotated[str, AfterValidator(repository_path)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(Section):
    """Tolerances of one output, as in `Tolerance`; a missing one is that of the model."""

    rtol: NonNegative | None = None
    atol: NonNegative | None = None


class Agreement(Section):
    """The share of evaluation samples on which a lower-precision graph must give the reference's top-1 answer."""

    tf32: Share = 0.99
    float16: Share = 0.99
    bfloat16: Share = 0.98
    int8: Share = 0.9
    int4: Share = 0.9


class Tolerance(Section):
    """Tolerances of parity, by numpy.allclose's rule: |got - reference| <= atol + rtol * |reference| per element.

    They apply to float32 graphs. Lower-precision graphs must reach `agreement` and stay within the budget.

    Attributes:
        rtol: Relative tolerance.
        atol: Absolute tolerance, in the output's unit.
        outputs: Other tolerances for single outputs, by name.
        agreement: Minimal shares of equal top-1 answers, by precision.
    """

    rtol: NonNegative = 1e-3
    atol: NonNegative = 1e-5
    outputs: dict[str, Limits] = {}
    agreement: Agreement = Agreement()

    def of(self, output: str) -> tuple[float, float]:
        """(rtol, atol) of one output."""
        own = self.outputs.get(output, Limits())
        return (
            self.rtol if own.rtol is None else own.rtol,
            self.atol if own.atol is None else own.atol,
        )


class Verify(Section):
    """Settings of the parity checks.

    Attributes:
        draws: Number of normal and of uniform random cases.
        samples: Number of real evaluation samples to use.
        timeout: Time limit per request, in seconds.
        evaluator: Whether an `onnx:` file is compared with a second implementation, which also computes a float64
            reference.
        evaluator_seconds: Time limit for the second implementation, in seconds, over all cases.
    """

    draws: Positive = 5
    samples: Positive = 64
    timeout: Seconds = 120
    evaluator: bool = True
    evaluator_seconds: Seconds = 60


class Data(Section):
    """Settings of the checks of evaluation and calibration samples.

    Attributes:
        min_samples: Minimal number of samples in a split.
        max_label_share: Largest share of samples with the same label.
        max_shared: Largest share of evaluation samples that may also be in the calibration split.
        suite: Path of a Great Expectations suite (JSON).
    """

    min_samples: Positive = 50
    max_label_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_shared: Share = 0.0
    suite: RepositoryPath | None = None


class Weights(Section):
    """The weights of a `build:` model. In params.yaml, a file name alone is enough.

    Attributes:
        file: A safetensors file, or a file of torch.save.
        key: Where the state dict is in the file: a key, keys joined by dots, or a list of keys.
        strip: A prefix that is removed from all names that begin with it.
        strict: Whether every name of the module must be in the file, and no other. If False, the report lists each
            parameter that keeps the values of build().
    """

    file: RepositoryPath
    key: str | list[str] | None = None
    strip: str = ""
    strict: bool = True


class Benchmark(Section):
    """Settings of the benchmark.

    Attributes:
        search_seconds: Time limit for screening and tuning, in seconds, per runtime.
        finalists: Number of variants to measure in full, besides the plain export.
        rounds: Minimal number of measuring rounds.
        race_seconds: While confidence intervals are wide, rounds continue until this many seconds have passed.
        round_seconds: Measuring time of one variant at one size in a round, in seconds.
        warmup_runs: Runs before each measurement that are not counted.
        callers: Numbers of threads that call at the same time.
        torch_compile: Whether to measure torch.compile as a second reference, which takes about 30 s.
    """

    search_seconds: Seconds = 120
    finalists: Positive = 3
    rounds: Annotated[int, Field(ge=3)] = 10
    race_seconds: Seconds = 30
    round_seconds: Seconds = 0.04
    warmup_runs: Positive = 10
    callers: list[Positive] = [1, 2, 4]
    torch_compile: bool = False


class Budget(Section):
    """Limits for the variant to release.

    Attributes:
        quality_drop: Largest loss of quality against the reference, absolute, in the unit of the quality function.
        min_snr_db: Minimal signal-to-noise ratio over the evaluation set, in dB.
        min_cosine: Minimal cosine similarity of the worst evaluation sample.
        latency_ms: Largest median latency (p50) at the first typical size, in ms.
        size_mb: Largest size of its files, in MB (10^6 bytes).
        memory_mb: Largest peak memory of its process, in MB.
    """

    quality_drop: NonNegative = 0.01
    min_snr_db: float | None = None
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    latency_ms: Seconds | None = None
    size_mb: Seconds | None = None
    memory_mb: Seconds | None = None
