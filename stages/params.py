"""params.yaml, typed: every mistake in it is one line with the path into the file, before any stage computes.

As a DVC stage it writes, for each model and stage, the settings that this stage reads and the digests of the source
files behind them (`build/params/<model>/<stage>.json`). Each stage depends on its own such file, so changing one
model's tolerance re-runs nothing of another model and no export, and a default may stand in one place.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry import policy
from registry.errors import UsageError
from registry.evidence import TensorSpec, sha256_file, write_atomically
from stages import command, paths
from stages.sources import defines, local_sources

Size = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]

RESERVED = {"params", "host", "tracking"}


def _callable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError(f"{value!r} is not of the form package.module:function")
    return value


def _repository_path(value: str) -> str:
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{value!r} must be a path inside the repository, relative to it")
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
    range: tuple[int, int] | None = None


class Output(Section):
    shape: list[Axis]
    about: str = ""


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
    opset: Annotated[int, Field(ge=17, le=23)] = 20
    constant_folding: bool = True
    keep_initializers_as_inputs: bool = False
    verbose: bool = False


class Tolerance(Section):
    """|got - reference| <= atol + rtol * |reference|, element by element."""

    rtol: NonNegative = 1e-3
    atol: NonNegative = 1e-5


class Verify(Section):
    draws: Positive = 5
    samples: Positive = 64
    timeout: Seconds = 120


class Data(Section):
    min_samples: Positive = 50
    max_label_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    suite: RepositoryPath | None = None


class Optimize(Section):
    candidates: list[str] = ["onnxsim", "onnxoptimizer", "ort_offline", "ort_fusions"]
    timeout: Seconds = 300


class Quantize(Section):
    candidates: list[str] = ["dynamic", "static"]
    calibration_samples: Positive = 64
    timeout: Seconds = 300


class Benchmark(Section):
    rounds: Annotated[int, Field(ge=3)] = 12
    round_seconds: Seconds = 0.04
    warmup_runs: Positive = 10


class Budget(Section):
    """What a chosen variant may cost: quality lost against the reference (absolute, in the quality's own unit), and
    ceilings on its p50 at the first typical size, its files, and its worker's peak memory."""

    quality_drop: NonNegative = 0.01
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
            if not spec.shape:
                yield f"inputs.{name}.shape", "a scalar input has no axis to stack samples on"
        for stage in ("optimize", "quantize"):
            known = technique_names(stage)
            for index, name in enumerate(getattr(self, stage).candidates):
                if name not in known:
                    yield (
                        f"{stage}.candidates[{index}]",
                        f"there is no stages/{TECHNIQUES[stage]}/{name}.py" + suggestion(name, known),
                    )


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "onward"


class Params(Section):
    """params.yaml. `environments` is checked by the registry, whose it is (registry/policy.py)."""

    tracking: Tracking = Tracking()
    defaults: dict[str, Any] = {}
    models: Annotated[dict[str, ModelParams], Field(min_length=1)]
    runtimes: Annotated[list[Literal["cpu", "openvino", "cuda"]], Field(min_length=1)] = ["cpu"]
    environments: Any = None


TECHNIQUES = {"optimize": "optimizers", "quantize": "quantizers"}

_MODEL = ("build", "onnx", "inputs", "outputs", "dims", "seed")
_CHECK = (*_MODEL, "cases", "tolerance", "verify")

# What each stage reads of its model's settings: nothing else can be reached through `section`.
READS: dict[str, tuple[str, ...]] = {
    "train": ("build", "onnx", "train", "weights", "seed", "samples", "quality", "quality_floor", "inputs", "outputs"),
    "data": ("samples", "inputs", "data"),
    "export": (*_MODEL, "export"),
    "verify": _CHECK,
    "optimize": (*_CHECK, "optimize"),
    "quantize": (*_CHECK, "quality", "quantize"),
    "benchmark": (*_CHECK, "quality", "benchmark"),
    "select": ("budget", "dims", "quality"),
    "publish": ("inputs", "outputs", "tolerance"),
}

_CALLABLES = ("build", "train", "samples", "quality", "cases")
_FILES = ("weights", "onnx")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something known is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def technique_names(stage: str) -> list[str]:
    """The optimisers or quantisers there are: one file each."""
    folder = Path(__file__).parent / TECHNIQUES[stage]
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def read(path: Path | None = None) -> Params:
    """Read and check params.yaml.

    Raises:
        UsageError: one line for each mistake, each with the path into the file.
    """
    path = path or paths.root() / "params.yaml"
    raw = _parse(path)
    problems = _merge_defaults(raw)
    params = None
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        first: dict[str, str] = {}  # a union's branches each have an error: the first says enough
        for item in error.errors(include_url=False):
            first.setdefault(*_explain(item, raw))
        problems += [f"{where}: {message}" for where, message in first.items()]
    if params is not None:
        for name, model in params.models.items():
            problems += [f"models.{name}{'.' if at else ''}{at}: {what}" for at, what in model.problems()]
    try:
        policy.parse(raw.get("environments"))
    except UsageError as error:
        problems += [line.removeprefix("params.yaml: ") for line in str(error).splitlines()]
    if problems or params is None:
        raise UsageError("\n".join(f"{path.name}: {problem}" for problem in dict.fromkeys(problems)))
    return params


def section(model: str, stage: str, params: Params | None = None) -> ModelParams:
    """The settings of `model` that `stage` reads; any other attribute raises AttributeError.

    Raises:
        UsageError: params.yaml is wrong, or holds no such model.
    """
    params = params or read()
    if model not in params.models:
        raise UsageError(
            f"params.yaml: models.{model}: there is no such model"
            + (suggestion(model, params.models) or f"; there are {', '.join(params.models)}")
        )
    whole = params.models[model]
    part = ModelParams.model_construct(**{name: getattr(whole, name) for name in READS[stage]})
    for name in set(ModelParams.model_fields) - set(READS[stage]):
        part.__dict__.pop(name, None)
    return part


def resolve(name: str, key: str = "") -> Callable[..., Any]:
    """Import `package.module:function`.

    Raises:
        UsageError: it does not import; `key` says where in params.yaml it was named.
    """
    module, _, attribute = name.partition(":")
    where = f"params.yaml: {key}: " if key else ""
    if str(paths.root()) not in sys.path:
        sys.path.insert(0, str(paths.root()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise UsageError(f"{where}{module} has no function {attribute!r}") from None
    except Exception as error:
        raise UsageError(f"{where}{module} does not import: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(f"{where}{name} is no function")
    return found  # type: ignore[no-any-return]


def _parse(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path.name}: there is none in {path.parent.name}/") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{path.name}:{line} {problem}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path.name}: wants a mapping with the key models")
    return raw


def _merge_defaults(raw: dict[str, Any]) -> list[str]:
    """Merge `defaults` below each model, in place; return what is wrong with them."""
    defaults = raw.get("defaults") or {}
    models: Any = raw.get("models")
    problems = []
    if not isinstance(defaults, dict):
        return ["defaults: wants a mapping"]
    for key in defaults:
        if key not in ModelParams.model_fields:
            problems.append(f"defaults.{key}: unknown key" + suggestion(str(key), ModelParams.model_fields))
    for name in models if isinstance(models, dict) else ():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            problems.append(f"models.{name}: a model's name is letters, digits, - and _, 64 at most")
        elif name in RESERVED:
            problems.append(f"models.{name}: this name is taken: build/{name}/ belongs to the {name} stage")
        if isinstance(models[name], dict):
            models[name] = _merged(defaults, models[name])
    return problems


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old: Any = merged.get(key)
        # inputs, outputs and dims are replaced whole: a default's dimension would haunt a model that has none.
        nested = isinstance(old, dict) and isinstance(value, dict) and key not in ("inputs", "outputs", "dims")
        merged[key] = _merged(old, value) if nested else value
    return merged


def _explain(error: Any, raw: dict[str, Any]) -> tuple[str, str]:
    """(path into the file, what is wrong there) of one of pydantic's errors."""
    where = ""
    value: Any = raw
    for part in error["loc"]:
        if isinstance(part, int) and isinstance(value, list):
            where += f"[{part}]"
            value = value[part]
        elif isinstance(value, dict):
            where += f".{part}"
            value = value.get(part)
        else:
            break  # pydantic's own name for a branch of a union, not a key of the file
    kind, got = error["type"], error["input"]
    if kind == "extra_forbidden":
        message = "unknown key" + suggestion(str(error["loc"][-1]), _siblings(error["loc"]))
    elif kind == "missing":
        message = "this key is missing"
    elif kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
    else:
        message = error["msg"] + (f", not {got!r}" if isinstance(got, (str, int, float, type(None))) else "")
    return where.lstrip("."), message


def _siblings(loc: tuple[Any, ...]) -> Iterable[str]:
    """The keys that are known where an unknown one was found."""
    kind: Any = Params
    if loc[0] == "models" and len(loc) == 3:
        kind = ModelParams
    elif loc[0] == "models" and len(loc) == 5:
        kind = {"inputs": Input, "outputs": Output, "dims": Dim}.get(loc[2])
    elif loc[0] == "models" and len(loc) == 4:
        kind = ModelParams.model_fields[loc[2]].annotation
    elif len(loc) == 2:
        kind = Params.model_fields[loc[0]].annotation
    return getattr(kind, "model_fields", {}).keys()


def _digests(name: str, model: ModelParams, stage: str) -> dict[str, str]:
    """sha256 of each of the repository's files behind what `stage` reads of `model`."""
    found = {}
    root = paths.root()
    for key in _CALLABLES:
        if key in READS[stage] and getattr(model, key):
            for path in local_sources(getattr(model, key).partition(":")[0], root):
                found[path.relative_to(root).as_posix()] = sha256_file(path)
    files = [getattr(model, key) for key in _FILES if key in READS[stage]] if stage == "train" else []
    files += [model.data.suite] if stage == "data" else []
    for file in filter(None, files):
        if not (root / file).is_relative_to(root / "build" / name / "train"):
            found[file] = sha256_file(root / file)
    return found


def _missing(name: str, model: ModelParams) -> Iterable[str]:
    """Callables and files that params.yaml names and the repository lacks."""
    root = paths.root()
    for key in _CALLABLES:
        value = getattr(model, key)
        if value:
            module, _, attribute = value.partition(":")
            try:
                found = defines(module, attribute, root)
            except SyntaxError as error:
                yield f"models.{name}.{key}: {module} does not parse: {error.msg} (line {error.lineno})"
                continue
            if found is False:
                yield f"models.{name}.{key}: {module} defines no {attribute!r}"
            if found is None and importlib.util.find_spec(module.partition(".")[0]) is None:
                yield f"models.{name}.{key}: there is no module {module!r}"
    for key, value in (("weights", model.weights), ("onnx", model.onnx), ("data.suite", model.data.suite)):
        made_here = value and model.train and (root / value).is_relative_to(root / "build" / name / "train")
        if value and not made_here and not (root / value).is_file():
            yield f"models.{name}.{key}: {value}: there is no such file"


def write_sections(params: Params, target: Path) -> None:
    """Write what each stage of each model depends on, below `target`, replacing what is there.

    Raises:
        UsageError: a callable that params.yaml names does not import, or a file that it names is not there.
    """
    problems = [problem for name, model in params.models.items() for problem in _missing(name, model)]
    if problems:
        raise UsageError("\n".join(f"params.yaml: {problem}" for problem in problems))
    texts: dict[str, bytes] = {}
    for name, model in params.models.items():
        for stage, keys in READS.items():
            settings = model.model_dump(mode="json", include=set(keys))
            content: dict[str, Any] = {"settings": settings, "sources": _digests(name, model, stage)}
            if stage == "benchmark":
                content["runtimes"] = params.runtimes
            if stage == "publish":
                content["experiment"] = params.tracking.experiment
            texts[f"{name}/{stage}.json"] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    if any(not (target / path).is_file() or (target / path).read_bytes() != text for path, text in texts.items()):
        _import_all(params)
    with paths.replacing(target) as fresh:
        for path, text in texts.items():
            write_atomically(fresh / path, text)


def _import_all(params: Params) -> None:
    problems = []
    for name, model in params.models.items():
        for key in _CALLABLES:
            if getattr(model, key):
                try:
                    resolve(getattr(model, key), f"models.{name}.{key}")
                except UsageError as error:
                    problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def main() -> None:
    """Check params.yaml and write what each stage of each model depends on to build/params/.

    Nothing is written where anything is wrong; each mistake is one line with the path into the file, and exit 2.
    """
    write_sections(read(), paths.root() / "build" / "params")


if __name__ == "__main__":
    command.run_plain(main)
