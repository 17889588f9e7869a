"""What params.yaml may say: one class a section, each key with its type, its default and its limits."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_serializer, model_validator

from onward.registry.evidence.records import Kind, TensorSpec
from onward.stages.config import techniques

Size = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]


def _callable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError(f"{value!r} is not of the form package.module:function")
    return value


def _repository_path(value: str) -> str:
    # The params stage refuses files outside the repository: the project may be a folder below its top.
    if Path(value).is_absolute():
        raise ValueError(f"{value!r} must be a path relative to params.yaml")
    return value


def _axis(value: int | str) -> int | str:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value}: a fixed dimension is at least 1; one that varies is named, and declared under dims")
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_]\w*", value):
        raise ValueError(f"{value!r} is no name for a dimension: letters, digits and _")
    return value


CallableName = Annotated[str, AfterValidator(_callable_name)]
RepositoryPath = Annotated[str, AfterValidator(_repository_path)]
Axis = Annotated[int | str, AfterValidator(_axis)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(Section):
    """`range` is inclusive at both ends; integers need one, for nothing else says which values are valid."""

    dtype: DType = "float32"
    shape: list[Axis]
    about: str = ""
    range: tuple[int | float, int | float] | None = None

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")

    @property
    def is_mask(self) -> bool:
        """Holds nothing but on and off."""
        return self.dtype == "bool" or (not self.is_float and self.range == (0, 1))


class Output(Section):
    """`kind` decides how the output is judged at lower precision (registry/evidence/kinds.py); it is guessed where it
    is not given. `axis` is that of classes or channels, counted from 0, the batch, or from the end; `limit` the
    largest loss by the measure of its kind."""

    shape: list[Axis]
    about: str = ""
    kind: Kind | None = None
    axis: int | None = None
    limit: NonNegative | None = None

    @model_validator(mode="after")
    def _axis_within(self) -> Output:
        axis, rank = self.axis, len(self.shape)
        if axis is None:
            return self
        if self.kind is None:
            raise ValueError("axis: says nothing without kind; add what the output is")
        if self.kind == "indices":
            raise ValueError("axis: indices have none; drop this key")
        if not -rank <= axis < rank:
            raise ValueError(f"axis: there is no axis {axis}: the shape has {rank}, counted from 0")
        if axis % rank == 0:
            raise ValueError("axis: axis 0 is the batch; name the axis of the classes or channels")
        return self


class Dim(Section):
    """A named dimension: the sizes that it may have, and those that are served most."""

    min: Size = 1
    max: Positive
    typical: Annotated[list[Size], Field(min_length=1)]

    @model_validator(mode="after")
    def _typical_within(self) -> Dim:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        for size in self.typical:
            if not self.min <= size <= self.max:
                raise ValueError(f"typical size {size} is not within {self.min} to {self.max}")
        return self


class Export(Section):
    """`strategy`: `auto` tries the others in this order, up to the first whose result computes the same.
    `allow_traced_constants`: a graph may hold values that a tracer took from its one example."""

    strategy: Literal["auto", "dynamo", "dynamo-auto", "script", "trace"] = "auto"
    opset: Annotated[int, Field(ge=17, le=23)] = 20
    constant_folding: bool = True
    keep_initializers_as_inputs: bool = False
    verbose: bool = False
    allow_traced_constants: bool = False
    custom_translations: CallableName | None = None


class Limits(Section):
    rtol: NonNegative | None = None
    atol: NonNegative | None = None


class Agreement(Section):
    """The share of evaluation samples on which a graph of lower precision must give the reference's top-1 answer."""

    tf32: Share = 0.99
    float16: Share = 0.99
    bfloat16: Share = 0.98
    int8: Share = 0.9
    int4: Share = 0.9


class Tolerance(Section):
    """|got - reference| <= atol + rtol * |reference|, element by element, for float32; less precise graphs are held to
    `agreement` and to the budget's quality."""

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
    """`evaluator`: whether an ONNX file from elsewhere is held to a second implementation, which also gives it a
    float64 reference; `evaluator_seconds`: how long that may take in all."""

    draws: Positive = 5
    samples: Positive = 64
    timeout: Seconds = 120
    evaluator: bool = True
    evaluator_seconds: Seconds = 60


class Data(Section):
    """`max_shared`: the share of the evaluation samples that may stand in the calibration split, too."""

    min_samples: Positive = 50
    max_label_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_shared: Share = 0.0
    suite: RepositoryPath | None = None


class TechniqueSpec(Section):
    """A technique to try, with options: `name`, or `{name: {option: value}}`. Which there are,
    stages/config/techniques.py reads from the techniques' own files."""

    name: str
    options: dict[str, bool | int | float | str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1:
            name, options = next(iter(value.items()))
            return {"name": name, "options": options or {}}
        raise ValueError("wants the name of a technique, or {name: {option: value}}")

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        return {self.name: self.options}


def candidates(*given: str | dict[str, Any]) -> list[TechniqueSpec]:
    """Candidates written as in params.yaml."""
    return [TechniqueSpec.model_validate(item) for item in given]


class Optimize(Section):
    candidates: list[TechniqueSpec] = candidates(
        "onnxsim",
        "onnxoptimizer",
        {"onnxoptimizer": {"passes": "all"}},
        "onnxslim",
        "onnxscript",
        "ort_fusions",
        {"ort_fusions": {"attention": "partial"}},
        {"ort_fusions": {"norms": "fused"}},
        "ort_transformers",
    )
    timeout: Seconds = 300


class Quantize(Section):
    candidates: list[TechniqueSpec] = candidates(
        "dynamic",
        {"dynamic": {"reduce_range": True}},
        {"dynamic": {"scales": "per_tensor"}},
        {"dynamic": {"scales": "per_tensor", "reduce_range": True}},
        "static",
        {"static": {"calibrate": "percentile"}},
        {"static": {"calibrate": "entropy"}},
        {"static": {"layers": "all"}},
        {"static": {"form": "qoperator"}},
        "weight_only",
        "float16",
        "bfloat16",
    )
    calibration_samples: Positive = 64
    timeout: Seconds = 300


class Benchmark(Section):
    """`search_seconds` is what screening and tuning may take, per runtime; `finalists` how many variants are measured
    in full beside the plain export; `rounds` how many rounds they race at least, and `race_seconds` until when
    a race goes on for more of them while intervals are wide; `callers` how many threads call at once. torch.compile
    takes half a minute."""

    search_seconds: Seconds = 120
    finalists: Positive = 3
    rounds: Annotated[int, Field(ge=3)] = 10
    race_seconds: Seconds = 30
    round_seconds: Seconds = 0.04
    warmup_runs: Positive = 10
    callers: list[Positive] = [1, 2, 4]
    torch_compile: bool = False


class Budget(Section):
    """What a chosen variant may cost: quality lost against the reference (absolute, in the quality's own unit), how far
    its answers may stray (signal to noise over the evaluation set in dB, cosine of the worst sample), and ceilings on
    its p50 at the first typical size, its files, and its worker's peak memory."""

    quality_drop: NonNegative = 0.01
    min_snr_db: float | None = None
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    latency_ms: Seconds | None = None
    size_mb: Seconds | None = None
    memory_mb: Seconds | None = None


class ModelParams(Section):
    """Everything that params.yaml says of one model, defaults included."""

    build: CallableName | None = None
    onnx: RepositoryPath | None = None
    train: CallableName | None = None
    weights: RepositoryPath | None = None
    seed: int = 0
    samples: CallableName
    quality: CallableName | None = None
    fidelity: CallableName | None = None
    quality_floor: float | None = None
    cases: CallableName | None = None
    inputs: Annotated[dict[str, Input], Field(min_length=1)]
    outputs: Annotated[dict[str, Output], Field(min_length=1)]
    dims: dict[str, Dim] = {}
    export: Export = Export()
    tolerance: Tolerance = Tolerance()
    verify: Verify = Verify()
    data: Data = Data()
    optimize: Optimize = Optimize()
    quantize: Quantize = Quantize()
    benchmark: Benchmark = Benchmark()
    budget: Budget = Budget()

    @property
    def is_torch(self) -> bool:
        return self.build is not None

    def input_specs(self) -> list[TensorSpec]:
        return [
            TensorSpec(name=name, dtype=spec.dtype, shape=list(spec.shape), about=spec.about)
            for name, spec in self.inputs.items()
        ]

    def output_specs(self, dtypes: dict[str, str] | None = None) -> list[TensorSpec]:
        return [
            TensorSpec(name=name, dtype=(dtypes or {}).get(name, "float32"), shape=list(spec.shape), about=spec.about)
            for name, spec in self.outputs.items()
        ]

    def problems(self) -> Iterable[tuple[str, str]]:
        """What is wrong between keys, as (path below the model, message)."""
        if (self.build is None) == (self.onnx is None):
            yield ("build" if self.build else "", "give either build: (a PyTorch module) or onnx: (a file), not both")
        if self.onnx and self.weights:
            yield "weights", "an onnx: model holds its own weights; drop this key"
        if self.train and self.weights:
            yield "weights", "these weights would be trained (train:) and given at once; drop one of the two keys"
        if self.quality and self.fidelity:
            yield "fidelity", "quality: judges the answers by labels already; drop one of the two keys"
        if self.quality_floor is not None and self.quality is None:
            yield "quality_floor", "there is no quality: callable to hold to it"
        used = set()
        for group, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, spec in specs.items():
                for axis, dim in enumerate(spec.shape):
                    if isinstance(dim, str):
                        if dim not in self.dims:
                            yield (
                                f"{group}.{name}.shape[{axis}]",
                                f"the dimension {dim!r} is not declared under dims" + suggestion(dim, self.dims),
                            )
                        if group == "inputs":
                            used.add(dim)
        for dim in self.dims:
            if dim not in used:
                yield f"dims.{dim}", "no input uses this dimension" + suggestion(dim, used)
        for name, spec in self.inputs.items():
            if "int" in spec.dtype and spec.range is None and self.cases is None:
                yield f"inputs.{name}", "an integer input needs range: [lowest, highest], both valid"
            if spec.range is not None and spec.range[0] > spec.range[1]:
                yield f"inputs.{name}.range", f"{spec.range[0]} is larger than {spec.range[1]}"
            if spec.range is not None and not spec.is_float and any(end != int(end) for end in spec.range):
                yield f"inputs.{name}.range", f"the ends of the range of {spec.dtype} are whole numbers"
            if name in self.outputs:
                yield f"outputs.{name}", "an input has this name; a graph needs different ones"
            if not spec.shape:
                yield f"inputs.{name}.shape", "a scalar input has no axis to stack samples on"
        for name in self.tolerance.outputs:
            if name not in self.outputs:
                yield f"tolerance.outputs.{name}", "there is no such output" + suggestion(name, self.outputs)
        for stage in techniques.FOLDERS:
            yield from techniques.problems(stage, getattr(self, stage).candidates)


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "onward"


class Params(Section):
    """params.yaml. `environments` is checked by the registry, whose it is (registry/gates/policy.py)."""

    schema_version: int = 1
    tracking: Tracking = Tracking()
    defaults: dict[str, Any] = {}
    models: Annotated[dict[str, ModelParams], Field(min_length=1)]
    runtimes: Annotated[list[Literal["cpu", "openvino", "cuda", "tensorrt"]], Field(min_length=1)] = ["cpu"]
    environments: Any = None


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something known is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
