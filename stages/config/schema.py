"""The schema of params.yaml: one class per section, each key with its type, default and limits.

docs/params.md describes every key for users.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.records import Kind, TensorSpec
from onward.registry.text import suggestion
from onward.stages.config import techniques
from onward.stages.config.card import Card
from onward.stages.config.default_candidates import OPTIMIZERS, QUANTIZERS
from onward.stages.config.derived_sizes import expanded, names_in
from onward.stages.config.techniques import TechniqueSpec
from onward.stages.config.values import (
    UNLIMITED,
    Axis,
    CallableName,
    Checkpoint,
    DType,
    Expression,
    Library,
    NonNegative,
    Positive,
    RepositoryPath,
    SampleAxis,
    Seconds,
    Section,
    Share,
    Size,
    Weight,
)


class Input(Section):
    """An input of the model.

    Attributes:
        dtype: NumPy dtype.
        shape: Fixed sizes, names of `dims`, and expressions of these names such as `past + new`.
        about: A description for users.
        range: Lowest and highest valid value, both inclusive. Integers need one, because nothing else says which
            values are valid.
        sample_axis: The axis that counts samples; null ("none" in params.yaml) if all samples share one array.
        value: The only value of an input that never changes: a number, or a list that fits its shape.
    """

    dtype: DType = "float32"
    shape: list[Axis]
    about: str = ""
    range: tuple[int | float, int | float] | None = None
    sample_axis: SampleAxis = 0
    value: bool | int | float | list[Any] | None = None

    @model_validator(mode="after")
    def _samples_within(self) -> Input:
        if self.shape and self.sample_axis is not None and self.sample_axis >= len(self.shape):
            raise ValueError(f"sample_axis: there is no axis {self.sample_axis}: the shape has {len(self.shape)}")
        return self

    @property
    def samples_on(self) -> int | None:
        """The axis that counts samples; None if there is none."""
        return self.sample_axis if self.shape and self.value is None else None

    @property
    def is_fixed(self) -> bool:
        """Whether the input has one value only."""
        return self.value is not None

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a floating-point type."""
        return self.dtype.startswith("float")

    @property
    def is_mask(self) -> bool:
        """Whether the input has only the values 0 and 1."""
        return self.dtype == "bool" or (not self.is_float and self.range == (0, 1))


class Output(Section):
    """An output of the model.

    Attributes:
        shape: Fixed sizes, names of `dims`, and expressions of these names such as `height / 4`.
        about: A description for users.
        sample_axis: The axis that counts samples; null ("none" in params.yaml) if there is none. By default the axis
            with the size of the inputs' samples.
        kind: Decides how the output is judged at lower precision (registry/evidence/kinds.py); guessed if not given.
        axis: The axis of classes or channels, not that of samples; negative numbers count from the end.
        limit: The largest loss allowed, by the measure of the output's kind.
    """

    shape: list[Axis]
    about: str = ""
    sample_axis: SampleAxis | Literal["auto"] = "auto"
    kind: Kind | None = None
    axis: int | None = None
    limit: NonNegative | None = None

    @model_validator(mode="after")
    def _axis_within(self) -> Output:
        axis, rank = self.axis, len(self.shape)
        samples = self.sample_axis
        if isinstance(samples, int) and samples >= rank:
            raise ValueError(f"sample_axis: there is no axis {samples}: the shape has {rank}, counted from 0")
        if axis is None:
            return self
        if self.kind is None:
            raise ValueError("axis: this key needs kind; add the kind of the output")
        if self.kind == "indices":
            raise ValueError("axis: an output of kind indices has no such axis; remove this key")
        if not -rank <= axis < rank:
            raise ValueError(f"axis: there is no axis {axis}: the shape has {rank}, counted from 0")
        if axis % rank == (0 if samples == "auto" else samples):
            raise ValueError(f"axis: axis {axis % rank} is the batch; give the axis of the classes or channels")
        return self


def _split_weights(given: dict[str, Any]) -> dict[str, Any]:
    """Split `typical: [{1: 0.9}, {32: 0.1}]` into sizes and weights."""
    entries = given.get("typical")
    if not isinstance(entries, list) or not any(isinstance(entry, dict) for entry in entries):
        return given
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("typical: give every size a weight, as in [{1: 0.9}, {32: 0.1}], or none of them")
    pairs = [pair for entry in entries for pair in entry.items()]
    for size, weight in pairs:
        if not isinstance(weight, int | float) or not weight > 0:
            raise ValueError(f"typical: the weight of {size} must be a number above 0, not {weight!r}")
    return {**given, "typical": [size for size, _ in pairs], "weights": [weight for _, weight in pairs]}


class Dim(Section):
    """A named dimension.

    Attributes:
        min: Smallest size allowed.
        max: Largest size allowed.
        typical: The sizes served most often, which are benchmarked. Each may have a weight: `[{1: 0.9}, {32: 0.1}]`.
        weights: The weight of each typical size in means over sizes; empty if all are equal. `typical` sets it.
        multiple_of: Every size is a multiple of this number.
        size: An expression of other dimensions that gives the size, such as `past + new`. It replaces all other keys.
            params.yaml may contain the expression alone instead of a mapping.
    """

    min: Size = 1
    max: Positive = UNLIMITED
    typical: list[Size] = []
    weights: list[Weight] = []
    multiple_of: Positive = 1
    size: Expression | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"size": given}
        if not isinstance(given, dict):
            return given
        if isinstance(given.get("multiple_of"), int) and "min" not in given:
            given = {**given, "min": given["multiple_of"]}
        return _split_weights(given)

    @model_validator(mode="after")
    def _weight_for_each(self) -> Dim:
        if self.weights and len(self.weights) != len(self.typical):
            raise ValueError(f"weights: {len(self.weights)} weights for {len(self.typical)} typical sizes")
        return self

    def weight(self, size: int) -> float:
        """The weight of a typical size in means over sizes; 1 if sizes have no weights."""
        return self.weights[self.typical.index(size)] if self.weights else 1.0

    @model_validator(mode="after")
    def _typical_within(self) -> Dim:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        for what, size in (("min", self.min), ("max", self.max), *(("typical size", size) for size in self.typical)):
            if size % self.multiple_of and size != UNLIMITED:
                raise ValueError(f"{what} {size} is not a multiple of {self.multiple_of}")
        for size in self.typical:
            if not self.min <= size <= self.max:
                raise ValueError(f"typical size {size} is not within {self.min} to {self.max}")
        return self

    @property
    def sizes(self) -> range:
        """All allowed sizes, in order."""
        return range(self.min, self.max + 1, self.multiple_of)

    @property
    def varies(self) -> bool:
        """Whether more than one size is allowed."""
        return self.max > self.min


class Export(Section):
    """Settings of the export to ONNX.

    Attributes:
        strategy: Exporter to use. `auto` tries the others in the listed order, until a graph passes parity.
        opset: Opset version of the graph.
        constant_folding: Whether the exporter folds constants.
        keep_initializers_as_inputs: Whether initializers are graph inputs, too.
        verbose: Whether the exporter writes its log.
        allow_traced_constants: Whether a graph may contain values that the tracer took from its single example.
        custom_translations: `module:table`, ONNX functions by torch operator.
    """

    strategy: Literal["auto", "dynamo", "dynamo-auto", "script", "trace"] = "auto"
    opset: Annotated[int, Field(ge=17, le=23)] = 20
    constant_folding: bool = True
    keep_initializers_as_inputs: bool = False
    verbose: bool = False
    allow_traced_constants: bool = False
    custom_translations: CallableName | None = None


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


def candidates(*given: str | dict[str, Any]) -> list[TechniqueSpec]:
    """Parse candidates that are written as in params.yaml."""
    return [TechniqueSpec.model_validate(item) for item in given]


class Optimize(Section):
    """Settings of the optimisers: techniques to try, and the time limit of each, in seconds."""

    candidates: list[TechniqueSpec] = candidates(*OPTIMIZERS)
    timeout: Seconds = 300


class Quantize(Section):
    """Settings of the quantisers: techniques to try, calibration samples, and the time limit of each, in seconds."""

    candidates: list[TechniqueSpec] = candidates(*QUANTIZERS)
    calibration_samples: Positive = 64
    timeout: Seconds = 300


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


class ModelParams(Section):
    """All settings of one model, including defaults. docs/params.md explains each key.

    Attributes:
        build: `module:function` without arguments that returns the PyTorch module.
        onnx: Instead of `build`: an ONNX file in the repository.
        custom_ops: A native library with custom operators: a file, or `module:function` that returns its path.
        constants: For `onnx:` files: values of inputs that never change, by name; they are folded into the file.
        train: `module:function` of a seed that returns the trained module, or an `onnx.ModelProto` if `onnx` is set.
        weights: Instead of `train`: a safetensors file, or a state dict that torch.save wrote.
        seed: Seed of training, random cases and the order of rounds.
        samples: `module:function` of "evaluation" or "calibration" that returns arrays by name.
        label: The name of the labels in `samples`.
        quality: `module:function` of (outputs by name, labels), or of the outputs alone; higher is better.
        fidelity: Instead of `quality`: `module:function` of (outputs of the original, outputs); higher is better.
        quality_floor: The minimum quality of what is released.
        cases: `module:function` of (sizes by dimension, NumPy generator) that returns valid random inputs.
        inputs: The inputs, by name.
        outputs: The outputs, by name.
        states: For models with a state: the output that becomes an input of the next step, by input.
        dims: The named dimensions.
        export: Settings of the export to ONNX.
        tolerance: Tolerances of parity.
        verify: Settings of parity verification.
        data: Settings of the checks of evaluation and calibration samples.
        optimize: Settings of the optimisers.
        quantize: Settings of the quantisers.
        benchmark: Settings of the benchmark.
        budget: Limits for the variant to release.
        card: The part of the model card that cannot be measured.
    """

    build: CallableName | None = None
    onnx: RepositoryPath | None = None
    custom_ops: Library | None = None
    constants: dict[str, bool | int | float | list[Any]] = {}
    train: CallableName | None = None
    weights: Checkpoint | None = None
    seed: int = 0
    samples: CallableName
    label: Annotated[str, Field(min_length=1)] = "label"
    quality: CallableName | None = None
    fidelity: CallableName | None = None
    quality_floor: float | None = None
    cases: CallableName | None = None
    inputs: Annotated[dict[str, Input], Field(min_length=1)]
    outputs: Annotated[dict[str, Output], Field(min_length=1)]
    states: dict[str, str] = {}
    dims: dict[str, Dim] = {}
    export: Export = Export()
    tolerance: Tolerance = Tolerance()
    verify: Verify = Verify()
    data: Data = Data()
    optimize: Optimize = Optimize()
    quantize: Quantize = Quantize()
    benchmark: Benchmark = Benchmark()
    budget: Budget = Budget()
    card: Card = Card()

    @model_validator(mode="before")
    @classmethod
    def _with_derived_sizes(cls, given: Any) -> Any:
        """Replace the dimensions of `dims` that are expressions by these expressions, in all shapes."""
        return expanded(given) if isinstance(given, dict) else given

    @property
    def free_dims(self) -> dict[str, Dim]:
        """The dimensions of the inputs whose sizes follow from no other dimension."""
        used = {name for spec in self.inputs.values() for axis in spec.shape for name in names_in(axis)}
        return {name: dim for name, dim in self.dims.items() if name in used and dim.size is None}

    @property
    def data_sized(self) -> set[str]:
        """The outputs with a size that depends on the values of the inputs: no input has that dimension."""
        free = self.free_dims
        return {
            name
            for name, spec in self.outputs.items()
            if any(part not in free for axis in spec.shape for part in names_in(axis))
        }

    @property
    def is_torch(self) -> bool:
        """Whether the model is a PyTorch module; otherwise it is an ONNX file."""
        return self.build is not None

    def input_specs(self) -> list[TensorSpec]:
        """The inputs as they are recorded with a version."""
        return [
            TensorSpec(name=name, dtype=spec.dtype, shape=list(spec.shape), about=spec.about)
            for name, spec in self.inputs.items()
        ]

    def output_specs(self, dtypes: dict[str, str] | None = None) -> list[TensorSpec]:
        """The outputs as they are recorded with a version; an output without an entry in `dtypes` is float32."""
        return [
            TensorSpec(name=name, dtype=(dtypes or {}).get(name, "float32"), shape=list(spec.shape), about=spec.about)
            for name, spec in self.outputs.items()
        ]

    def problems(self) -> Iterable[tuple[str, str]]:
        """Check rules that involve several keys; gives (path below the model, message) of each problem."""
        if (self.build is None) == (self.onnx is None):
            yield ("build" if self.build else "", "give either build: (a PyTorch module) or onnx: (a file), not both")
        if self.onnx and self.weights:
            yield "weights", "an onnx: model contains its own weights; remove this key"
        if self.train and self.weights:
            yield "weights", "train: and weights: cannot be used together; remove one of the two keys"
        if self.quality and self.fidelity:
            yield "fidelity", "quality: and fidelity: cannot be used together; remove one of the two keys"
        if self.quality_floor is not None and self.quality is None:
            yield "quality_floor", "this key needs quality:; add it, or remove this key"
        yield from self._shape_problems()
        for name, spec in self.inputs.items():
            if "int" in spec.dtype and spec.range is None and spec.value is None and self.cases is None:
                yield f"inputs.{name}", "an integer input needs range: [lowest, highest], both inclusive"
            if spec.range is not None and spec.range[0] > spec.range[1]:
                yield f"inputs.{name}.range", f"{spec.range[0]} is larger than {spec.range[1]}"
            if spec.range is not None and not spec.is_float and any(end != int(end) for end in spec.range):
                yield f"inputs.{name}.range", f"both ends must be whole numbers, because the input is {spec.dtype}"
            if name in self.outputs:
                yield f"outputs.{name}", "an input has the same name; inputs and outputs need different names"
        if self.constants and self.build:
            yield "constants", "this key is for onnx: files; in a module, pass the constants in forward()"
        for name in self.constants.keys() & self.inputs.keys():
            yield f"constants.{name}", "it is also under inputs; a constant is no input of the released file"
        for name, output in self.states.items():
            if name not in self.inputs:
                yield f"states.{name}", "there is no such input" + suggestion(name, self.inputs)
            elif output not in self.outputs:
                yield f"states.{name}", f"there is no output {output!r}" + suggestion(output, self.outputs)
            elif len(self.inputs[name].shape) != len(self.outputs[output].shape):
                yield f"states.{name}", f"the output {output} has another number of axes than this input"
            elif self.inputs[name].samples_on is None:
                yield f"states.{name}", "a state needs an axis of samples: each sequence has its own"
        if self.states and all(name in self.states or spec.is_fixed for name, spec in self.inputs.items()):
            yield "states", "at least one input must not be a state"
        for name in self.tolerance.outputs:
            if name not in self.outputs:
                yield f"tolerance.outputs.{name}", "there is no such output" + suggestion(name, self.outputs)
        for stage in techniques.FOLDERS:
            yield from techniques.problems(stage, getattr(self, stage).candidates)

    def _shape_problems(self) -> Iterable[tuple[str, str]]:
        """Check the dimensions of all shapes, and the axis of samples."""
        used: set[str] = set()
        plain: set[str] = set()
        for group, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, spec in specs.items():
                for axis, dim in enumerate(spec.shape):
                    for part in names_in(dim):
                        if part not in self.dims:
                            yield (
                                f"{group}.{name}.shape[{axis}]",
                                f"the dimension {part!r} is not declared under dims" + suggestion(part, self.dims),
                            )
                    if group == "inputs":
                        used.update(names_in(dim))
                        plain.update([dim] if dim in self.dims else [])
                    elif isinstance(dim, str) and dim not in self.dims:
                        for part in set(names_in(dim)) & self.dims.keys() - used:
                            yield f"outputs.{name}.shape[{axis}]", f"no input has the dimension {part!r}"
        in_outputs = {part for spec in self.outputs.values() for axis in spec.shape for part in names_in(axis)}
        for dim, about in self.dims.items():
            if about.size is not None:
                continue
            if dim not in used | in_outputs:
                yield f"dims.{dim}", "no input uses this dimension" + suggestion(dim, used)
            elif dim in used:
                if about.max == UNLIMITED:
                    yield f"dims.{dim}.max", "this key is missing"
                if not about.typical:
                    yield f"dims.{dim}.typical", "this key is missing"
                if dim not in plain:
                    yield (
                        f"dims.{dim}",
                        "an input must have this dimension on an axis of its own, not in expressions only",
                    )
        sampled = {spec.shape[spec.samples_on] for spec in self.inputs.values() if spec.samples_on is not None}
        if len(sampled) > 1:
            yield (
                "inputs",
                (
                    f"the axes of samples have different sizes: {', '.join(map(str, sampled))}; by default, axis 0 "
                    "counts samples. Set sample_axis of the inputs: another axis, or none for an input that all share"
                ),
            )
        if not sampled:
            yield "inputs", "no input has an axis of samples; set sample_axis of one"


class Tracking(Section):
    """Where and what is recorded.

    Attributes:
        experiment: The experiment in MLflow that runs are logged to.
        register_experiments: Whether `dvc exp run` registers versions, as `dvc repro` does.
    """

    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "onward"
    register_experiments: bool = False


def _runtimes(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and "auto" in value and len(value) > 1:
        raise ValueError("auto is every runtime; write runtimes: auto, or name the runtimes")
    return value


Runtime = Literal["auto", "cpu", "openvino", "openvino-native", "cuda", "tensorrt"]
Runtimes = Annotated[list[Runtime], Field(min_length=1), BeforeValidator(_runtimes)]


HostName = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]


class Params(Section):
    """The whole of params.yaml.

    Attributes:
        schema_version: The version of this file's format.
        tracking: Where and what is recorded.
        defaults: Keys that all models inherit.
        models: The models to release, by name.
        runtimes: The runtimes to measure: `auto` for all that are installed and usable, or a list.
        hosts: The classes of machines that `onward fleet` measures latencies on, by name.
        environments: What each environment requires of a version, by name. The registry validates this section
            (registry/gates/policy.py).
    """

    schema_version: int = 1
    tracking: Tracking = Tracking()
    defaults: dict[str, Any] = {}
    models: Annotated[dict[str, ModelParams], Field(min_length=1)]
    runtimes: Runtimes = ["auto"]
    hosts: dict[HostName, HostClass] = {}
    environments: Any = None
