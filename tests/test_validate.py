"""`predict` checks the documented limits of a model, and either passes values unchanged or rejects them."""

from __future__ import annotations

import json
import math
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from onward.registry.errors import OnwardError, UsageError
from onward.registry.inference.conversion import to_dtype
from onward.registry.inference.inputs import Input, Inputs
from onward.registry.inference.session import InferenceSession

MODES = ["strict", "shape", "off"]
KINDS = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16, "uint64": TensorProto.UINT64, "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}  # fmt: skip


def made(
    path: Path,
    inputs: dict[str, tuple[str, list[Any] | None]],
    documented: dict[str, Any] | None = None,
    dims: dict[str, Any] | None = None,
    nodes: list[Any] | None = None,
) -> Path:
    """A model that returns each input as NAME_out, or that has other `nodes` with the output y."""
    values = [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in inputs.items()]
    outs = [helper.make_tensor_value_info(f"{name}_out", KINDS[kind], shape) for name, (kind, shape) in inputs.items()]
    same = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    if nodes:
        outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes or same, "g", values, outs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    said = {"onward.inputs": documented, "onward.dims": dims}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in said.items() if value is not None})
    onnx.save(model, path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A model of x float32[batch, 4], documented as 0 to 0.1 in batches of 2 to 8."""
    about = {"x": {"shape": ["batch", 4], "range": [0, 0.1]}}
    return made(tmp_path / "p.onnx", {"x": ("float32", ["batch", 4])}, about, {"batch": {"min": 2, "max": 8}})


X = np.full((2, 4), 0.05, np.float32)


def with_value(value: float, dtype: Any = np.float32) -> Any:
    x = X.astype(dtype)
    x[1, 2] = value
    return x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 0.11, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, list])
def test_a_value_outside_the_documented_range_is_rejected_with_its_position(
    picture: Path, value: float, dtype: Any
) -> None:
    x = with_value(value, np.float64).tolist() if dtype is list else with_value(value, dtype)
    strict = InferenceSession(picture)
    with pytest.raises(UsageError, match=r"input x contains .* at \[1, 2\]; the model documents 0 to 0.1"):
        strict.predict(x)
    with pytest.raises(UsageError, match=r"input x contains"):
        strict.predict_batches(x)
    fed = InferenceSession(picture, validate="shape").predict(x)
    assert np.array_equal(fed, np.asarray(x, np.float32), equal_nan=True)


@pytest.mark.parametrize("value", [0, -0.0, 0.1, np.float32(0.1), 0.05])
def test_both_ends_of_a_range_are_valid_after_rounding_to_the_dtype(picture: Path, value: float) -> None:
    for dtype in (np.float32, np.float64):
        assert InferenceSession(picture).predict(with_value(value, dtype))[1, 2] == np.float32(value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_float_range_accepts_exactly_the_values_between_its_ends(dtype: Any, data: st.DataObject) -> None:
    low = data.draw(st.sampled_from([0, -1, 0.25]))
    high = data.draw(st.sampled_from([0.25, 1, 3]))
    width: Any = np.finfo(dtype).bits
    x = data.draw(arrays.arrays(dtype, (2, 3), elements=st.floats(width=width) | st.sampled_from([-0.0, low, high])))
    kind = {16: "tensor(float16)", 32: "tensor(float)", 64: "tensor(double)"}[width]
    spec = Input(SimpleNamespace(name="x", type=kind, shape=[2, 3]), limits=(low, high), strict=True)
    if all(low <= float(value) <= high for value in x.ravel()):
        spec.check_values(x)
    else:
        with pytest.raises(UsageError, match="the model documents"):
            spec.check_values(x)


def test_batches_must_match_the_documented_sizes(picture: Path) -> None:
    session = InferenceSession(picture)
    for size in (1, 9):
        x = np.zeros((size, 4), np.float32)
        with pytest.raises(UsageError, match=f"dimension batch is {size} in input x; the model documents 2 to 8"):
            session.predict(x)
        assert session.predict_batches(x).shape == (size, 4)
        assert InferenceSession(picture, validate="shape").predict(x).shape == (size, 4)
    with pytest.raises(UsageError, match="predict_batches runs fewer at a time"):
        session.predict(np.zeros((9, 4), np.float32))
    seen: list[int] = []
    loaded: Any = session._loaded
    run = loaded._run

    def counted(names: list[str], feed: dict[str, Any]) -> Any:
        seen.append(len(feed["x"]))
        return run(names, feed)

    loaded._run = counted
    x = np.random.default_rng(0).uniform(0, 0.1, (19, 4)).astype(np.float32)
    assert np.array_equal(session.predict_batches(x), x)
    assert np.array_equal(session.predict_batches(x, 1), x)
    assert seen == [8, 8, 3, *[2] * 10]


def test_other_dimensions_must_match_their_sizes(tmp_path: Path) -> None:
    about, dims = {"x": {"shape": ["batch", "length"]}}, {"batch": {"min": 0, "max": 8}, "length": {"min": 2, "max": 5}}
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("float32", ["batch", "length"])}, about, dims))
    assert session.predict(np.zeros((0, 2), np.float32)).shape == (0, 2)  # documented as valid
    for length in (1, 6):
        with pytest.raises(UsageError, match=f"dimension length is {length} in input x; the model documents 2 to 5$"):
            session.predict(np.zeros((1, length), np.float32))
    with pytest.raises(UsageError, match="is empty"):
        session.predict(np.zeros((1, 0), np.float32))


def test_a_size_in_params_yaml_applies_if_the_graph_leaves_it_open(tmp_path: Path) -> None:
    path = made(tmp_path / "m.onnx", {"x": ("float32", ["N", "C"])}, {"x": {"shape": ["batch", 3]}})
    with pytest.raises(UsageError, match=r"shape \[2, 4\]; the model takes x float32\[batch, 3\]"):
        InferenceSession(path).predict(np.zeros((2, 4), np.float32))
    assert InferenceSession(path, validate="shape").predict(np.zeros((2, 4), np.float32)).shape == (2, 4)


@pytest.mark.parametrize("kind", ["int8", "int64", "uint8", "uint64"])
def test_integer_ranges_are_checked(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path / "m.onnx", {"x": (kind, ["n"])}, {"x": {"shape": ["n"], "range": [-5, 2**70]}})
    session = InferenceSession(path)
    most = np.iinfo(kind).max
    assert session.predict(np.array([0, most], kind)).tolist() == [0, most]
    if kind.startswith("i"):
        with pytest.raises(UsageError, match=r"input x contains -6 at \[1\]"):
            session.predict(np.array([0, -6], kind))


@pytest.mark.parametrize(
    ("documented", "dims"),
    [
        ({"x": {"range": "0 to 1"}}, {"n": 3}),
        ({"x": {"range": [0]}}, {"n": {"min": "1", "max": 2}}),
        ({"x": {"range": [0, "1"]}}, {"n": {"max": 1}}),
        ({"x": {"range": [math.nan, 1]}}, ["n"]),
        ({"x": {"range": {"min": 0}}}, "n"),
        ({"x": None}, None),
    ],
)
def test_foreign_metadata_imposes_no_limits(tmp_path: Path, documented: Any, dims: Any) -> None:
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("float32", ["n"])}, documented, dims))
    assert session.predict(np.array([7, 8, 9], np.float32)).tolist() == [7, 8, 9]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("float32", [1.0, 1e300], r"contains 1e\+300 at \[1\], which float32 cannot represent"),
        ("float32", np.ma.array([1.0, 2.0], mask=[False, True]), r"is a masked array.*\.filled\(VALUE\)"),
        ("float32", np.ma.array([1.0, 2.0], np.float32), "is a masked array"),
        ("float32", [np.ma.array(1.0, mask=True), 2.0], "is a masked array"),
        ("float32", [1.0, np.ma.masked], "is a masked array"),
        ("float16", [1.0, 70000.0], "contains 70000.0 at .*which float16 cannot represent"),
        ("float16", [1, 70000], "contains 70000 at"),
        ("uint8", [1, -1], r"contains -1 at \[1\], which uint8 cannot represent"),
        ("uint8", [1, 256], r"contains 256 at"),
        ("uint64", [1, -1], "contains -1 at"),
        ("int8", [1, 2**70], "is object"),
        ("int64", [[1], [2, 3]], "cannot be converted to an array"),
        ("int64", [1, None], "is object"),
        ("float64", [1, 2**53 + 1], "float64 cannot represent"),
        ("bool", [1, 0], "is int64"),
        ("string", [1, 2], "contains 1 at"),
        ("string", np.array(["a", None], object), r"contains None at \[1\]"),
        ("string", np.array([b"a", b"b"], object), "contains b'a' at"),
        ("string", [["a"], ["b", "c"]], "cannot be converted to an array|not a string"),
    ],
    ids=str,
)
def test_invalid_values_are_rejected_in_every_mode(
    tmp_path: Path, mode: Any, kind: str, value: Any, message: str
) -> None:
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": (kind, ["n"])}), validate=mode)
    with pytest.raises(UsageError, match=f"input x.*({message})"):
        session.predict(value)


@pytest.mark.parametrize("mode", ["strict", "shape"])
def test_invalid_arrays_are_rejected(tmp_path: Path, mode: Any) -> None:
    def refused(kind: str, value: Any, message: str) -> None:
        session = InferenceSession(made(tmp_path / "m.onnx", {"x": (kind, ["n"])}), validate=mode)
        with pytest.raises(UsageError, match=message):
            session.predict(value)

    refused("float32", np.array([1, 1e300]), r"contains 1e\+300 at \[1\], which float32 cannot represent")
    refused("float64", np.array([1, 2**53 + 1]), r"contains 9007199254740993 at \[1\], which float64 cannot represent")
    refused("uint8", np.array([1, -1]), "is int64")
    refused("uint8", np.array([1, 2], np.int8), "is int8")
    refused("int64", np.array([1, 2], np.uint64), "is uint64")
    refused("float32", np.array([1, 2], object), "is object")
    refused("float32", np.array(1, np.float32), r"rank 0, shape \[\]")
    refused("float32", np.array(["2020-01-01"], "M8[D]"), "is datetime64")
    refused("string", np.array([b"a"]), r"is \|S1")


@pytest.mark.parametrize("mode", MODES)
def test_memory_layouts_and_byte_orders_do_not_matter(tmp_path: Path, mode: Any) -> None:
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("float32", ["n", 3])}), validate=mode)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    for layout in (x, x.astype(">f4"), np.asfortranarray(x), x[::-1], x[:, ::-1], x.tolist()):
        assert np.array_equal(session.predict(layout), np.asarray(layout))
    frozen = x.copy()
    frozen.flags.writeable = False
    assert np.array_equal(session.predict_batches(frozen, 3), x)


@pytest.mark.parametrize("mode", MODES)
def test_strings_keep_every_character(tmp_path: Path, mode: Any) -> None:
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("string", ["n"])}), validate=mode)
    texts = ["", "a\0b", "ü\0", " 漢"]
    for strings in (texts, np.array(texts, object), tuple(texts)):
        assert session.predict(strings).tolist() == texts
    with pytest.raises(UsageError, match="utf-8"):
        session.predict(["\ud800"])


def test_an_unsupported_tensor_type_names_the_conversion(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("float32", ["n"])}))
    with pytest.raises(UsageError, match=r"input x cannot be converted to an array.*\.float\(\)"):
        session.predict(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(UsageError, match="input x cannot be converted to an array"):
        session.predict(torch.ones(2, device="meta"))
    assert session.predict(torch.ones(2, dtype=torch.float16)).tolist() == [1, 1]


class Gpu:
    """An array in memory that NumPy cannot read."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AttributeError("use .get()")


def test_an_object_that_cannot_become_an_array_is_rejected(tmp_path: Path) -> None:
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("float32", ["n"])}))
    with pytest.raises(UsageError, match=r"input x cannot be converted to an array: use \.get\(\)"):
        session.predict(Gpu())


def test_mode_off_leaves_checks_to_onnx_runtime_and_explains_its_errors(picture: Path) -> None:
    session = InferenceSession(picture, validate="off")
    assert np.isnan(session.predict(with_value(math.nan))[1, 2])
    assert session.predict(np.zeros((1, 4), np.float32)).shape == (1, 4)
    for wrong, message in (
        (X.astype(np.float64), "input x is float64, the model takes x float32"),
        (X[:, :3], r"input x has shape \[2, 3\]"),
        (X[0], r"input x has rank 1"),
    ):
        with pytest.raises(UsageError, match=rf"p\.onnx: {message}.*; ONNX Runtime says: .*INVALID_ARGUMENT"):
            session.predict(wrong)
        with pytest.raises(UsageError, match=message):
            session.predict_batches(wrong)
    with pytest.raises(UsageError, match="no input y"):
        session.predict(y=X)


def test_an_unknown_validation_mode_is_rejected(picture: Path) -> None:
    with pytest.raises(UsageError, match="validate: 'none' is not known; choose one of strict, shape, off"):
        InferenceSession(picture, validate="none")  # type: ignore[arg-type]


def test_a_refreshed_session_keeps_its_validation_mode(picture: Path) -> None:
    session = InferenceSession(picture, validate="shape")
    assert session._load(picture, {"target": "x"}, None)._inputs.validate == "shape"


def test_an_onnx_runtime_error_names_the_model_and_the_inputs(tmp_path: Path) -> None:
    gather = [helper.make_node("Gather", ["w", "x"], ["y"])]
    session = InferenceSession(made(tmp_path / "m.onnx", {"x": ("int64", ["n"])}, nodes=gather))
    assert session.predict([2]) == 2
    with pytest.raises(UsageError, match=r"m\.onnx: ONNX Runtime rejects x int64\[1\]: .*idx=3"):
        session.predict([3])
    reshape = [helper.make_node("Reshape", ["w", "x"], ["y"])]
    session = InferenceSession(made(tmp_path / "r.onnx", {"x": ("int64", [1])}, nodes=reshape))
    for call in (session.predict, session.predict_batches):
        with pytest.raises(OnwardError, match=r"r\.onnx: ONNX Runtime failed on x int64\[1\]: "):
            call([2])


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_inputs_predicts(tmp_path: Path, mode: Any) -> None:
    path = made(tmp_path / "m.onnx", {}, nodes=[helper.make_node("Identity", ["w"], ["y"])])
    session = InferenceSession(path, validate=mode)
    for answer in (session.predict(), session.predict({})):
        assert answer.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="1 inputs given, the model takes 0: no inputs"):
        session.predict(X)
    with pytest.raises(UsageError, match="no input x; it takes no inputs"):
        session.predict(x=X)
    nothing: tuple[Any, ...] = ({}, X, [])
    for samples in nothing:
        with pytest.raises(UsageError, match=r"the model has no inputs.*call predict\(\)"):
            session.predict_batches(samples)


OPEN = st.sampled_from([None, "", "?", "-1", "None", "unk__1"])


@given(st.data())
@settings(deadline=None)
def test_unnamed_dimensions_are_independent(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.lists(OPEN, min_size=1, max_size=3), min_size=1, max_size=3))
    values = [
        type("Value", (), {"name": f"x{n}", "type": "tensor(float)", "shape": shape}) for n, shape in enumerate(shapes)
    ]
    said = {f"x{n}": {"shape": shape, "range": [0, 1]} for n, shape in enumerate(shapes)}
    dims = {"?": {"min": 7, "max": 7}, "None": {"min": 7, "max": 7}}
    inputs = Inputs(values, {"onward.inputs": json.dumps(said), "onward.dims": json.dumps(dims)}, "strict")
    fed = [np.zeros(data.draw(st.lists(st.integers(1, 4), min_size=len(s), max_size=len(s)))) for s in shapes]
    assert [array.shape for array in inputs.feed(tuple(fed), {}).values()] == [array.shape for array in fed]
    assert inputs.batch(5) == (1, 5)


def test_an_element_type_unsupported_by_numpy_is_reported(tmp_path: Path) -> None:
    import ml_dtypes  # noqa: F401  teaches NumPy the word bfloat16

    for kind in ("tensor(bfloat16)", "seq(tensor(float))", "map(int64,tensor(float))"):
        with pytest.raises(UsageError, match="NumPy has no dtype for"):
            to_dtype(kind)


@cache
def session_of(kind: str, mode: Any) -> InferenceSession:
    with tempfile.TemporaryDirectory() as folder:
        return InferenceSession(made(Path(folder) / "m.onnx", {"x": (kind, None)}), validate=mode)


numbers = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?"),
)
others = st.one_of(
    arrays.complex_number_dtypes(),
    arrays.unicode_string_dtypes(),
    arrays.byte_string_dtypes(),
    arrays.datetime64_dtypes(),
)
turns = st.sampled_from([lambda a: a, lambda a: a[::-1], lambda a: a[::2], lambda a: a.T])
given_arrays = st.builds(
    lambda array, turn: turn(array), arrays.arrays(numbers | others, arrays.array_shapes(max_dims=2)), turns
)
whole = st.integers(-(2**70), 2**70) | st.integers(-300, 300)
given_lists = st.lists(st.one_of(st.booleans(), whole, st.floats(), st.text(max_size=3)), min_size=1, max_size=4)


def the_same(got: Any, wanted: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether the model received the given value, up to float rounding."""
    if isinstance(wanted, (str, np.str_)) or isinstance(got, str):
        return bool(got == wanted)
    got, wanted = (value.item() if isinstance(value, np.generic) else value for value in (got, wanted))
    if got == wanted or (got != got and wanted != wanted):
        return True
    if dtype.kind != "f" or not math.isfinite(got):
        return False
    info = np.finfo(dtype)
    return bool(abs(got - wanted) <= float(info.eps) * abs(wanted) + float(info.smallest_subnormal))


@pytest.mark.parametrize("mode", MODES)
@given(kind=st.sampled_from(list(KINDS)), value=given_arrays | given_lists)
@settings(deadline=None, max_examples=300)
def test_the_model_receives_the_given_values(mode: str, kind: str, value: Any) -> None:
    try:
        fed = session_of(kind, mode).predict(value)
    except UsageError:
        return
    plain = np.asarray(value, object) if isinstance(value, list) else value
    assert fed.shape == plain.shape
    dtype = np.dtype(object if kind == "string" else kind)
    assert all(the_same(got, wanted, dtype) for got, wanted in zip(fed.flat, plain.flat, strict=True))
    if (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "fiub"
        and (value.dtype.itemsize, dtype) != (8, np.dtype(np.float32))
    ):
        assert np.array_equal(fed, value, equal_nan=dtype.kind == "f")
