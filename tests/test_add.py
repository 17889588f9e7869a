"""`onward add`: the entry of a model in params.yaml, from its ONNX file or its PyTorch module."""

from __future__ import annotations

import json
import re
import shutil
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from onward.registry.errors import UsageError
from onward.stages.config import load
from onward.stages.config.values import Axis
from onward.stages.params import sections
from onward.stages.scaffold import settings
from onward.stages.scaffold.dimension_names import DimensionNames, unique_name, valid_name
from onward.stages.scaffold.entry import build_entry
from onward.stages.scaffold.found_model import BATCH, FoundDim, FoundModel, FoundTensor
from onward.stages.scaffold.output_shapes import Run, described_shape
from onward.stages.scaffold.params_text import insert_entry
from onward.stages.scaffold.varying_axes import varying_groups
from onward.stages.scaffold.yaml_scalars import inline
from tests.conftest import ROOT, Command, run
from tests.onnx_models import linear
from tests.toy import write_project

EMPTY = "models: {}\n"

MODULES = '''
import numpy as np
import torch
from torch import nn

print("noise on stdout")

class Towers(nn.Module):
    """Two inputs of different widths; a tuple of outputs."""
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(5, 3)
    def forward(self, main, auxiliary):
        return self.a(main) + self.b(auxiliary), (self.a(main) - self.b(auxiliary)).sum(1)
def towers():
    return Towers()
towers_example = (torch.zeros(2, 8), torch.zeros(2, 5))

class Text(nn.Module):
    """Ids and a keyword-only mask of one length, limited by positions; a dict of outputs."""
    def __init__(self):
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(50, 8), nn.Embedding(12, 8), nn.Linear(8, 3)
    def forward(self, ids, *, mask, extra=None):
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        weight = mask.unsqueeze(-1).float()
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return {"logits": self.head(mean), "hidden": hidden, "no": None}
def text():
    return Text()
def text_example():
    return {"mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1]] * 2), "ids": torch.arange(14).reshape(2, 7)}

class Best(nn.Module):
    """Returns three scores, or all where there are fewer."""
    def forward(self, scores):
        return scores.topk(min(3, scores.shape[1])).values
def best():
    return Best()
best_example = torch.arange(18.0).reshape(2, 9)

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
    def forward(self, x, keep):
        return self.head(x * keep.unsqueeze(-1)).mean(1)
def masked():
    return Masked()
masked_example = {"x": torch.ones(1, 6, 4), "keep": torch.ones(1, 6, dtype=torch.bool)}

class Picture(nn.Module):
    """Accepts pictures of any size."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
    def forward(self, image):
        features = self.conv(image)
        return features.mean((2, 3)), features
def picture():
    return Picture()
picture_example = np.zeros((1, 3, 16, 16), np.float32)

def plain():
    return nn.Sequential(nn.Linear(6, 3))
plain_example = torch.zeros(1, 6)

class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(4, 10).sum(1)
def fixed():
    return Fixed()
fixed_example = torch.ones(4, 10)

class Recurrent(nn.Module):
    """The batch is axis 1 of the state; half of the sequence is returned."""
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
    def forward(self, x, state):
        out, state = self.gru(x, state)
        return out[:, ::2], state
def recurrent():
    return Recurrent()
recurrent_example = (torch.zeros(3, 9, 5), torch.zeros(1, 3, 6))

class Flat(nn.Module):
    def forward(self, x):
        return x.reshape(-1)
def flat():
    return Flat()
flat_example = torch.zeros(2, 4)

def raises():
    raise OSError("no weights\\nhere")
def no_module():
    return 3
def aborts():
    import faulthandler, os
    faulthandler.disable()
    os.abort()
def leaves():
    raise SystemExit(3)
class Strings(nn.Module):
    def forward(self, x):
        return x, "text"
def strings():
    return Strings()
scalar_example = torch.tensor(1.0)
half_example = torch.zeros(2, 6, dtype=torch.bfloat16)
def half():
    return nn.Linear(6, 3).bfloat16()
def raising_example():
    raise ValueError("no data")
hidden = None
globals()["unseen"] = plain
'''


@pytest.fixture
def team(project: Path) -> Path:
    (project / "models" / "nets.py").write_text(MODULES)
    (project / "models" / "rows.py").write_text("hidden = None\n\ndef samples(split):\n    return {}\n")
    (project / "params.yaml").write_text(EMPTY)
    return project


def entry_of(project: Path, name: str = "m") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project / "params.yaml").read_text())["models"][name]
    return found


def problems() -> list[str]:
    """What `onward stage params` would say, a line each."""
    try:
        sections(load.read())
    except UsageError as error:
        return str(error).split("\n")
    return []


# Names


@given(st.text())
def test_every_name_is_converted_to_a_valid_one(text: str) -> None:
    name = valid_name(text)
    assert TypeAdapter(Axis).validate_python(name) == name
    assert valid_name(name) == name


@pytest.mark.parametrize(
    ("name", "valid"),
    [("batch+1", "batch_1"), ("0", "dim_0"), ("unk__12", "unk__12"), ("", "dim"), ("a b/c", "a_b_c"), ("_x", "_x")],
)
def test_a_valid_name_resembles_the_given_one(name: str, valid: str) -> None:
    assert valid_name(name) == valid


sizes = st.one_of(
    st.none(),
    st.integers(0, 9),
    st.sampled_from(["batch", "batch+1", "batch_1", "0", "unk__12", "?", "TODO", "N", "n-"]),
)
shaped = st.lists(st.lists(sizes, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)


@given(shaped)
def test_one_symbol_is_one_dimension_and_two_symbols_are_two(shapes: list[tuple[int | str | None, ...]]) -> None:
    inputs = [(f"x:{number}", shape) for number, shape in enumerate(shapes)]
    names = DimensionNames(inputs)
    of_symbol: dict[str, set[int | str]] = {}
    for name, shape in inputs:
        for declared, found in zip(shape, names.inputs[name], strict=True):
            assert TypeAdapter(Axis).validate_python(found) == found
            assert found != load.PLACEHOLDER
            if isinstance(declared, int) and declared > 0:
                assert found == declared
            elif isinstance(declared, str) and declared not in ("?", "0"):
                of_symbol.setdefault(declared, set()).add(found)
    assert all(len(found) == 1 for found in of_symbol.values())
    real = [next(iter(found)) for symbol, found in of_symbol.items() if symbol != "unk__12"]
    assert len(set(real)) == len(real)
    for symbol in ("batch", "batch_1", "N"):
        assert of_symbol.get(symbol, {symbol}) == {symbol}


def test_an_unnamed_axis_0_is_the_batch_and_other_axes_are_named_after_the_input() -> None:
    names = DimensionNames([("x", (None, "?", 3)), ("in:y", ("unk__1", 0, None))])
    assert names.inputs == {"x": ("batch", "x_axis1", 3), "in:y": ("batch", "in_y_axis1", "in_y_axis2")}
    assert names.batch == "batch"
    assert DimensionNames([("x", ("N", 4)), ("y", (None, 4))]).inputs["y"] == ("N", 4)
    assert DimensionNames([("x", (None, "batch")), ("y", ("batch+2", 4))]).inputs["x"] == ("batch_2", "batch")


@given(st.lists(st.text(), max_size=5))
def test_a_unique_name_is_unused(taken: list[str]) -> None:
    assert unique_name("batch", [*taken, "batch", "batch_2"]) not in {*taken, "batch", "batch_2"}


# YAML


@given(
    st.text(st.characters(codec="utf-8"))
    | st.sampled_from(["on", "y", "null", "~", "1e3", "0x1F", "2024-01-01", "a:b", "a:", "1_0", ".nan", "-", "#"])
)
def test_both_yaml_versions_read_texts_unchanged(text: str) -> None:
    line = inline({text: [text, 1]})
    assert "\n" not in line
    assert yaml.safe_load(line) == {text: [text, 1]} == YAML(typ="safe", pure=True).load(line)
    assert yaml.safe_load(f"{inline(text)}: {inline(text)}") == {text: text}


LAYOUTS = {
    "shipped": (ROOT / "params.yaml").read_text(),
    "braces": EMPTY,
    "nothing": "models:\nruntimes: [cpu]\n",
    "nothing, commented": "# top\nmodels:  # none yet\n\n# below\nruntimes: [cpu]\n",
    "null": "models: null\n",
    "missing": "runtimes: [cpu]\n# end\n",
    "no newline at the end": "models:\n  a: {onnx: a.onnx}",
    "comments behind": "models:\n  a:\n    onnx: a.onnx\n    # of a\n# of runtimes\nruntimes: [cpu]\n",
    "wide indentation": "models:\n      a:\n            onnx: a.onnx   # spaces   \n\n\n\nruntimes: [cpu]\n",
    "block scalar": "models:\n  a:\n    about: |\n      # text\n\n      more\n\nruntimes: [cpu]\n",
    "kept newlines": "models:\n  a:\n    about: |+\n      text\n\n\nruntimes: [cpu]\n",
    "first key": "models:\n  a: {x: 1}\ntracking: {experiment: e}\n",
    "anchors": "x: &x {seed: 1}\nmodels:\n  a:\n    <<: *x\n    y: 2\n",
    "document": "---\nmodels:\n  a: {x: 1}\n...\n",
    "quoted": "'models':\n  'a': \"b\"\n",
    "empty file": "",
    "comment alone": "# nothing yet\n",
}  # fmt: skip
LINES = ["new-model:", "  onnx: n.onnx  # TODO: x", "  inputs:", "    x: {shape: [batch]}"]
VALUES = {"new-model": {"onnx": "n.onnx", "inputs": {"x": {"shape": ["batch"]}}}}


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rest_of_the_file_stays_byte_for_byte(layout: str, bom: str, newline: str) -> None:
    text = bom + LAYOUTS[layout].replace("\n", newline)
    new = insert_entry(text, LINES, VALUES)
    assert new.startswith(bom)
    text, new = text.removeprefix(bom), new.removeprefix(bom)
    before, after = parsed(text) or {}, parsed(new)
    assert after.pop("models") == {**(before.pop("models", None) or {}), **VALUES}
    assert after == before
    assert "\n" not in new.replace("\r\n", "") or "\r\n" not in text
    kept = [line for line in text.splitlines() if line.strip()]
    if layout in ("braces", "null"):
        kept[-1] = kept[-1].partition(":")[0] + ":"
    added = iter(new.splitlines())
    assert all(line in added for line in kept)  # in this order
    assert new.count("# TODO: x") == 1


@given(
    st.dictionaries(st.text(string.ascii_letters, min_size=1), st.lists(st.integers() | st.text()), min_size=1),
    st.sampled_from(["", "\n", "# c\n", "  # c\n", "\nruntimes: [cpu]\n", "# c\nruntimes: [cpu]\n\n"]),
)
def test_an_entry_can_be_inserted_into_any_block_and_removed(models: dict[str, Any], tail: str) -> None:
    text = yaml.safe_dump({"models": models}, allow_unicode=True) + tail
    if parsed(text)["models"] != models:
        return  # what YAML 1.1 writes and YAML 1.2 reads as something else
    new = insert_entry(text, LINES, VALUES)
    assert parsed(new)["models"] == {**models, **VALUES}
    block = "".join(f"  {line}\n" for line in LINES)
    head, _, rest = new.partition(block)
    assert text in (head + rest, head.removesuffix("\n") + rest)


def test_models_in_braces_become_lines_and_comments_stay() -> None:
    text = "# top\nmodels: {a: {onnx: a.onnx}}  # models\nruntimes: [cpu]  # one\n"
    new = insert_entry(text, LINES, VALUES)
    assert parsed(new) == {"models": {"a": {"onnx": "a.onnx"}, **VALUES}, "runtimes": ["cpu"]}
    assert all(comment in new for comment in ("# top", "# models", "runtimes: [cpu]  # one"))


def test_a_file_that_cannot_be_extended_gives_an_error_with_the_block() -> None:
    with pytest.raises(UsageError, match=r"could not be added.*by hand:\n  new-model:"):
        insert_entry("x: &m {a: 1}\nmodels: *m\n", LINES, VALUES)


# What varies


def accepting(*groups: set[tuple[str, int]]) -> Callable[..., bool]:
    """A module whose dimensions are these groups: each varies as a whole."""

    def accepts(group: Iterable[tuple[str, int]], size: int) -> bool:
        return set(group) in groups or any(set(group) == a | b for a in groups for b in groups)

    return accepts


def test_axes_of_equal_size_are_distinguished() -> None:
    shapes = {"src": (4, 7), "src_mask": (4, 7), "tgt": (4, 7), "wide": (4, 7)}
    batch = {(name, 0) for name in shapes}
    source, target = {("src", 1), ("src_mask", 1)}, {("tgt", 1)}
    found = varying_groups(shapes, accepting(batch, source, target))
    assert [set(group) for group, _ in found] == [batch, source, target]
    assert varying_groups({"x": (4, 4)}, lambda group, size: False) == []
    assert [set(group) for group, _ in varying_groups({"x": (4, 4)}, accepting({("x", 0)}))] == [{("x", 0)}]


def test_image_axes_vary_only_together() -> None:
    shapes = {"ids": (2, 5), "bias": (2, 1, 5, 5)}
    length = {("ids", 1), ("bias", 2), ("bias", 3)}
    found = varying_groups(shapes, accepting({("ids", 0), ("bias", 0)}, length), fixed=[("bias", 2), ("bias", 3)])
    assert [set(group) for group, _ in found] == [{("ids", 0), ("bias", 0)}, length]
    assert varying_groups({"x": (3, 9)}, lambda group, size: True, fixed=[("x", 1)])[0][0] == (("x", 0),)


def test_an_output_axis_is_a_size_a_dimension_or_unknown() -> None:
    runs = [Run({"b": 4, "t": 4}, {"y": (4, 4, 9, 8)}), Run({"b": 5, "t": 4}, {"y": (5, 4, 9, 8)}),
            Run({"b": 4, "t": 3}, {"y": (4, 3, 9, 6)})]  # fmt: skip
    assert described_shape("y", runs) == ("b", "t", 9, None)
    assert described_shape("y", [*runs, Run({"b": 1, "t": 4}, {"y": (4,)})]) is None
    assert described_shape("y", []) is None


# The entry


def found_model(dims: dict[str, FoundDim] | None = None) -> FoundModel:
    dims = {"batch": BATCH} if dims is None else dims
    shape: tuple[int | str | None, ...] = (*dims, 3)
    return FoundModel((FoundTensor("x", "float32", shape),), (FoundTensor("y", "float32", shape),), dims)


def test_an_entry_uses_the_defaults_that_fit() -> None:
    given_keys = {"onnx": "a.onnx", "samples": "a:b"}
    batch = {"min": 1, "max": 64, "typical": [1, 32]}
    alone = build_entry("m", given_keys, found_model(), {"dims": {"batch": batch}})
    assert "dims" not in alone.values
    fixed = build_entry("m", given_keys, found_model({}), {"dims": {"batch": batch}})
    assert fixed.values["dims"] == {}
    more = build_entry("m", given_keys, found_model({"batch": BATCH, "t": FoundDim()}), {"dims": {"batch": batch}})
    assert more.values["dims"] == {"batch": batch, "t": {"min": 1, "max": "TODO", "typical": "TODO"}}
    assert [todo.key for todo in more.todos if todo.required] == ["models.m.dims.t.max", "models.m.dims.t.typical"]
    larger = build_entry("m", given_keys, found_model({"batch": FoundDim(2, 8, (2,))}), {"dims": {"batch": batch}})
    assert larger.values["dims"] == {"batch": {"min": 2, "max": 8, "typical": [2]}}
    assert "samples" not in build_entry("m", {"onnx": "a"}, found_model(), {"samples": "a:b"}).values


def test_the_text_of_an_entry_matches_its_values() -> None:
    tensor = FoundTensor("on: {x}#\n\u2028", "int32", ("batch", None), seen=(0, 7), note="odd\nnote # [")
    model = FoundModel((FoundTensor("yes", "int64", ("batch", 4)),), (tensor,), {"batch": BATCH})
    entry = build_entry("1e3", {"build": "a.b:c"}, model, {})
    assert parsed("\n".join(entry.lines)) == {"1e3": entry.values} == yaml.safe_load("\n".join(entry.lines))
    required = [todo.key for todo in entry.todos if todo.required]
    assert len(required) == 3
    assert sum("# TODO: " in line for line in entry.lines) == len(entry.todos)


# ONNX files


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_complete_entry_is_valid(team: Path, onward: Command) -> None:
    linear(team / "m.onnx", external=True)
    code, out, err = onward("add", "m", "--onnx", "m.onnx", "--samples", "models.rows:samples")
    assert (code, err) == (0, "")
    assert "line 2: added models.m" in out
    assert "Next: check with `onward stage params`" in out
    assert entry_of(team) == {
        "onnx": "m.onnx",
        "samples": "models.rows:samples",
        "inputs": {"x": {"dtype": "float32", "shape": ["batch", 4]}},
        "outputs": {"y": {"shape": ["batch", 3]}},
        "dims": {"batch": {"min": 1, "max": 32, "typical": [1, 8]}},
        **settings.values(),
    }
    assert problems() == []


def test_an_incomplete_entry_fails_and_lists_the_missing_keys(team: Path, onward: Command) -> None:
    (team / "files").mkdir()
    write(
        team / "files" / "m.onnx",
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=1), helper.make_node("Identity", ["n"], ["k"])],
        [value("x", ["batch+1", "0"]), value("n", ["batch+1", 2], TensorProto.INT64), value("w", [1])],
        [value("y", [None, "twice"]), value("k", ["batch+1", 2], TensorProto.INT64)],
        w=np.ones(1, np.float32),
    )
    code, out, err = onward("add", "m", "--onnx", str(team / "files" / "m.onnx"))
    assert (code, err) == (0, "")
    entry = entry_of(team)
    assert entry["onnx"] == "files/m.onnx"
    assert entry["inputs"] == {
        "x": {"dtype": "float32", "shape": ["batch_1", "x_axis1"]},
        "n": {"dtype": "int64", "shape": ["batch_1", 2], "range": "TODO"},
    }
    assert entry["outputs"] == {"y": {"shape": "TODO"}, "k": {"shape": ["batch_1", 2]}}
    missing = ["samples", "inputs.n.range", "outputs.y.shape", "dims.x_axis1.max", "dims.x_axis1.typical"]
    lines = problems()
    for key in missing:
        assert (
            f"params.yaml: models.m.{key}: this value is still missing; the comment beside it says what to fill in"
            in lines
        )
        assert f"TODO models.m.{key}: " in out
    assert len(lines) == len(missing)
    marked = [line for line in (team / "params.yaml").read_text().splitlines() if "# TODO: " in line]
    assert len(marked) == 6  # one dimension has two, and there are those of quality and of the batch's sizes


def test_open_output_sizes_are_found_by_running_the_file(team: Path, onward: Command) -> None:
    write(
        team / "m.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["h"]),
            helper.make_node("Transpose", ["h"], ["y"], perm=[1, 2, 0]),
        ],
        [value("ids", ["unk__1", "unk__2"], TensorProto.INT64)],
        [value("y", ["unk__7", None, "unk__9"])],
        table=np.ones((30, 5), np.float32),
    )
    assert onward("add", "m", "--onnx", "m.onnx")[0] == 0
    entry = entry_of(team)
    assert entry["inputs"]["ids"] == {"dtype": "int64", "shape": ["batch", "ids_axis1"], "range": [0, 29]}
    assert entry["outputs"]["y"]["shape"] == ["ids_axis1", 5, "batch"]


def test_an_entry_with_fixed_sizes_has_no_dimensions(team: Path, onward: Command) -> None:
    (team / "params.yaml").write_text("defaults: {dims: {batch: {max: 4, typical: [1]}}}\n" + EMPTY)
    write(team / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])])
    assert onward("add", "m", "--onnx", "m.onnx", "--samples", "models.rows:samples")[0] == 0
    assert entry_of(team)["inputs"]["x"]["shape"] == [1, 3]
    assert problems() == []


def test_a_file_above_the_project_is_named_relative_to_params_yaml(team: Path, onward: Command) -> None:
    (team.parent / ".git").mkdir()
    linear(team.parent / "m.onnx")
    assert onward("add", "m", "--onnx", "../m.onnx", "--samples", "models.rows:samples")[0] == 0
    assert entry_of(team)["onnx"] == "../m.onnx"
    assert problems() == []


def test_a_conflict_with_the_defaults_is_listed_as_missing(team: Path, onward: Command) -> None:
    (team / "params.yaml").write_text("defaults: {build: 'models.nets:plain'}\n" + EMPTY)
    linear(team / "m.onnx")
    code, out, _ = onward("add", "m", "--onnx", "m.onnx", "--samples", "models.rows:samples")
    assert code == 0
    assert "TODO models.m.build: give either build" in out


def test_a_state_a_scalar_and_another_axis_of_samples_are_declared(team: Path, onward: Command) -> None:
    """A file like a voice detector's: a state of [layers, batch, width] that comes out again, and a sampling rate."""
    nodes = [
        helper.make_node("Cast", ["rate"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["chunk", "wide"], ["loud"]),
        helper.make_node("Mul", ["state", "wide"], ["stateN"]),
    ]
    inputs = [value("chunk", ["batch", 4]), value("state", [2, None, 4]), value("rate", [], TensorProto.INT64)]
    write(team / "voice.onnx", nodes, inputs, [value("loud", ["batch", 4]), value("stateN", [None, None, None])])
    code, out, err = onward("add", "m", "--onnx", "voice.onnx")
    assert (code, err) == (0, ""), out
    entry = entry_of(team)
    assert entry["inputs"]["state"] == {"dtype": "float32", "shape": [2, "batch", 4], "sample_axis": 1}
    assert entry["inputs"]["rate"] == {"dtype": "int64", "shape": [], "value": "TODO"}
    assert entry["outputs"]["stateN"] == {"shape": [2, "batch", 4]}
    assert entry["states"] == {"state": "stateN"}
    assert list(entry["dims"]) == ["batch"]


def test_a_dry_run_prints_only_the_block_and_json_the_entry(team: Path, onward: Command) -> None:
    linear(team / "m.onnx")
    code, out, err = onward("add", "m", "--onnx", "m.onnx", "--dry-run")
    assert (code, err) == (0, "")
    block = yaml.safe_load(out)
    code, out, err = onward("add", "m", "--onnx", "m.onnx", "--dry-run", "--json")
    answer = json.loads(out)
    assert answer["entry"] == block["m"]
    assert answer["model"] == "m"
    assert {"key": "models.m.samples", "required": True}.items() <= answer["todos"][0].items()
    assert (team / "params.yaml").read_text() == EMPTY
    assert onward("add", "m", "--onnx", "m.onnx", "--json")[0] == 0
    assert entry_of(team) == block["m"]


def test_the_shipped_file_keeps_every_line(team: Path, onward: Command) -> None:
    shutil.copy(ROOT / "params.yaml", team)
    linear(team / "m.onnx")
    assert onward("add", "m", "--onnx", "m.onnx")[0] == 0
    before, after = (ROOT / "params.yaml").read_text(), (team / "params.yaml").read_text()
    start = after.index("  m:\n")
    end = after.index("\nruntimes:")
    assert after[:start] + after[end + 1 :] == before
    assert "dims" not in entry_of(team)  # those of `defaults`


# Modules

TEXT_DIM = {"min": 1, "max": 7, "typical": [7]}
EXPECTED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "towers": (
        {"main": ["float32", "batch", 8], "auxiliary": ["float32", "batch", 5]},
        {"output_0": ["batch", 3], "output_1": ["batch"]},
        {},
    ),
    "text": (
        {"ids": ["int64", "batch", "ids_axis1"], "mask": ["int64", "batch", "ids_axis1"]},
        {"logits": ["batch", 3], "hidden": ["batch", "ids_axis1", 8]},
        {"ids_axis1": TEXT_DIM},
    ),
    "masked": (
        {"x": ["float32", "batch", "x_axis1", 4], "keep": ["bool", "batch", "x_axis1"]},
        {"output": ["batch", 2]},
        {"x_axis1": {"min": 1, "max": 6, "typical": [6]}},
    ),
    "best": (
        {"scores": ["float32", "batch", "scores_axis1"]},
        {"output": ["batch", 3]},
        {"scores_axis1": {"min": 4, "max": 9, "typical": [9]}},
    ),
    "picture": (
        {"image": ["float32", "batch", 3, 16, 16]},
        {"output_0": ["batch", 4], "output_1": ["batch", 4, 7, 7]},
        {},
    ),
    "plain": ({"input": ["float32", "batch", 6]}, {"output": ["batch", 3]}, {}),
    "fixed": ({"x": ["float32", 4, 10]}, {"output": [4]}, {}),
    "recurrent": (
        {"x": ["float32", "batch", 9, 5], "state": ["float32", 1, "batch", 6]},
        {"output_0": ["batch", 5, 6], "output_1": [1, "batch", 6]},
        {},
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_module_is_described_by_its_signature_and_its_runs(team: Path, onward: Command, name: str) -> None:
    words = ("--build", f"models.nets:{name}", "--example", f"models.nets:{name}_example")
    code, _, err = onward("add", "m", *words, "--samples", "models.rows:samples")
    assert (code, err) == (0, "")
    entry = entry_of(team)
    inputs, outputs, dims = EXPECTED[name]
    assert {key: [item["dtype"], *item["shape"]] for key, item in entry["inputs"].items()} == inputs
    assert list(entry["inputs"]) == list(inputs)
    assert {key: item["shape"] for key, item in entry["outputs"].items()} == outputs
    batch = {} if name == "fixed" else {"batch": {"min": 1, "max": 32, "typical": [1, 8]}}
    assert entry.get("dims", {}) == {**batch, **dims}
    left = problems()
    if name != "text":
        assert left == []
    else:
        assert [line.partition(" this")[0] for line in left] == ["params.yaml: models.m.inputs.mask.range:"]
        assert entry["inputs"]["ids"]["range"] == [0, 49]
        assert "the example contains 0 to 1" in (team / "params.yaml").read_text()


def test_an_output_size_that_is_not_a_dimension_is_left_open(team: Path, onward: Command) -> None:
    code, out, _ = onward("add", "m", "--build", "models.nets:flat", "--example", "models.nets:flat_example")
    assert code == 0
    assert entry_of(team)["outputs"]["output"]["shape"] == "TODO"
    assert "axis 0 is no dimension of an input (seen: 8, 12" in out


def test_output_of_the_project_code_does_not_mix_with_the_result(team: Path) -> None:
    words = "add m --build models.nets:plain --example models.nets:plain_example --dry-run --json 2> errors"
    done = run(f"python -m onward.cli {words}", team, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, (team / "errors").read_text()
    assert json.loads(done.stdout)["entry"]["build"] == "models.nets:plain"
    assert "noise" in (team / "errors").read_text()


def test_the_command_imports_no_torch(team: Path) -> None:
    linear(team / "m.onnx")
    script = (
        "import sys; from pathlib import Path; from onward.stages.scaffold.add import add; "
        "add('m', build='models.nets:plain', example='models.nets:plain_example', dry_run=True); "
        "add('m', onnx=Path('m.onnx'), samples='models.rows:samples'); print('torch' in sys.modules)"
    )
    done = run(f'python -c "{script}"', team, PYTHONPATH=str(ROOT))
    assert done.stdout.splitlines()[-1] == "False"


# Mistakes

MODULE = ("--build", "models.nets:plain", "--example", "models.nets:plain_example")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "bad name": (("a.b", "--onnx", "m.onnx"), "'a.b' is not a valid name for a model"),
    "name of a stage": (("host", "--onnx", "m.onnx"), "build/host/ belongs to the host stage"),
    "long name": (("x" * 65, "--onnx", "m.onnx"), "more than 64 characters"),
    "known name": (("known", "--onnx", "m.onnx"), "there is a model 'known' already"),
    "nothing to inspect": (("m",), "give either --onnx FILE, or --build with --example"),
    "both": (("m", "--onnx", "m.onnx", *MODULE), "give either --onnx FILE, or --build"),
    "no example": (("m", *MODULE[:2]), "--build needs --example"),
    "example alone": (("m", "--onnx", "m.onnx", *MODULE[2:]), "--example needs --build"),
    "no file": (("m", "--onnx", "none.onnx"), "none.onnx: there is no such file"),
    "folder": (("m", "--onnx", "models"), "models: is no file"),
    "outside": (("m", "--onnx", "/etc/hostname"), "/etc/hostname: lies outside the repository"),
    "no ONNX": (("m", "--onnx", "params.yaml"), "params.yaml: is not an ONNX file"),
    "no samples": (("m", "--onnx", "m.onnx", "--samples", "models.rows:none"), "models.rows has no 'none'"),
    "samples form": (("m", "--onnx", "m.onnx", "--samples", "models.rows"), "--samples: 'models.rows' is not of the"),
    "no function": (
        ("m", "--onnx", "m.onnx", "--samples", "models.rows:hidden"),
        "models.rows:hidden is not a function",
    ),
    "strings": (("m", "--onnx", "strings.onnx"), "input 'x' is of dtype object"),
    "scalar": (("m", "--onnx", "scalar.onnx"), "input 'x' is a scalar"),
    "no module": (("m", "--build", "nowhere:x", *MODULE[2:]), "--build: nowhere does not import: ModuleNotFound"),
    "build raises": (("m", "--build", "models.nets:raises", *MODULE[2:]), "raised OSError: no weights"),
    "build returns": (
        ("m", "--build", "models.nets:no_module", *MODULE[2:]),
        "returns int, expected a torch.nn.Module",
    ),
    "build aborts": (("m", "--build", "models.nets:aborts", *MODULE[2:]), "died of SIGABRT"),
    "build exits": (("m", "--build", "models.nets:leaves", *MODULE[2:]), "SystemExit: 3"),
    "build unseen": (("m", "--build", "models.nets:unseen", *MODULE[2:]), "nets.py does not define 'unseen'"),
    "returns text": (("m", "--build", "models.nets:strings", *MODULE[2:]), "returns str for its output"),
    "example raises": (("m", *MODULE[:3], "models.nets:raising_example"), "raised ValueError: no data"),
    "example of None": (("m", *MODULE[:3], "models.nets:hidden"), "no input is called 'input'"),
    "example misfits": (("m", *MODULE[:3], "models.nets:fixed_example"), "does not accept the example"),
    "example misnamed": (("m", *MODULE[:3], "models.nets:text_example"), "it has no parameter 'mask'"),
    "too many": (("m", *MODULE[:3], "models.nets:towers_example"), "takes 1 tensors by position, the example has 2"),
    "bfloat16": (("m", "--build", "models.nets:half", "--example", "models.nets:half_example"), "of dtype bfloat16"),
    "scalar example": (("m", "--build", "models.nets:flat", "--example", "models.nets:scalar_example"), "is a scalar"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_prints_one_line_and_changes_nothing(team: Path, onward: Command, mistake: str) -> None:
    before = "models:\n  known: {onnx: m.onnx}\n"
    (team / "params.yaml").write_text(before)
    linear(team / "m.onnx")
    text = TensorProto.STRING
    write(
        team / "strings.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", [1], text)],
        [value("y", [1], text)],
    )
    write(team / "scalar.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [])], [value("y", [])])
    words, said = MISTAKES[mistake]
    code, out, err = onward("add", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
    assert "Traceback" not in err
    assert (team / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is none in .*; `onward init` writes one"),
        ("models: [", "params.yaml: line 1 "),
        ("- a", "wants a mapping"),
        ("models: [a]", "models: wants a mapping"),
        ("x: &m {a: {onnx: m.onnx}}\nmodels: *m\n", "could not be added without changing the rest"),
    ],
)
def test_a_params_yaml_that_cannot_be_extended_is_unchanged(
    project: Path, onward: Command, content: str | None, said: str
) -> None:
    linear(project / "m.onnx")
    if content is not None:
        (project / "params.yaml").write_text(content)
    code, out, err = onward("add", "m", "--onnx", "m.onnx")
    assert (code, out) == (2, "")
    assert re.search(said, err)
    assert (project / "params.yaml").exists() == (content is not None)
    assert content is None or (project / "params.yaml").read_text() == content


def test_an_entry_joins_another_one(project: Path, onward: Command) -> None:
    write_project(project)
    linear(project / "m.onnx")
    assert onward("add", "m", "--onnx", "m.onnx", "--samples", "models.toy:samples")[0] == 0
    assert problems() == []
    assert list(load.read().models) == ["toy", "m"]
