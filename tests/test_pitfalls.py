"""Every example of docs/export-pitfalls.md behaves as the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import save_file

from onward.stages.config import paths
from onward.stages.config.schema import ModelParams, Tolerance, Verify
from onward.stages.export import _export, _sound, _Unsound
from onward.stages.exporting import diagnostics
from onward.stages.parity.check import check, recall, sentence
from onward.stages.parity.declared_shapes import misdeclared
from onward.stages.parity.reference_answers import cases
from onward.stages.workers import isolated_call
from onward.stages.workers.torch_module import load_module
from onward.stages.workers.worker import Worker
from tests.conftest import ROOT, forget_models

HEAD = "import numpy as np\nimport torch\nfrom torch import nn\n\n\n"
TAIL = "\n\ndef build():\n    torch.manual_seed(0)\n    return Model()\n"


@dataclass
class Example:
    """A code block of the page, and one of the claims above it."""

    name: str
    code: str
    claim: dict[str, str]
    refused: str = ""
    warnings: list[str] = field(default_factory=list)

    def settings(self) -> ModelParams:
        """Settings with the output shape of the module: [batch, ...]."""
        module = f"models.{self.name}"
        translations = {"custom_translations": f"{module}:translations"} if "translations" in self.claim else {}
        return ModelParams.model_validate(
            {
                "build": f"{module}:build",
                "samples": f"{module}:build",
                "inputs": {"x": {"shape": ["batch", 8]}},
                "outputs": {self.claim.get("output", "y"): {"shape": ["batch", self.claim["width"]]}},
                "dims": {"batch": {"max": 16, "typical": [1, 4]}},
                "export": translations,
            }
        )


def examples() -> list[Example]:
    """One example for each claim of the page."""
    text = (ROOT / "docs" / "export-pitfalls.md").read_text()
    found = []
    for number, match in enumerate(re.finditer(r"((?:<!-- .*? -->\n)+)```python\n(.*?)```", text, re.S)):
        for place, comment in enumerate(re.findall(r"<!-- (.*?) -->", match[1])):
            parts = (part.partition(":") for part in comment.split(";"))
            claim = {key.strip(): value.strip() for key, _, value in parts}
            code = match[2]
            claim["width"] = 4 if "Linear(8, 4)" in code or "shape[1] // 2" in code or "narrow" in code else 8
            found.append(Example(f"example{number}_{place}", code, claim))
    return found


EXAMPLES = {
    f"{number}: {'; '.join(f'{k} {v}'.strip() for k, v in example.claim.items() if k != 'width')}": example
    for number, example in enumerate(examples())
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with every example, exported as claimed, in one process."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("pitfalls")
        patch.setenv("ONWARD_PROJECT", str(root))
        patch.syspath_prepend(str(root))
        forget_models()
        (root / "models").mkdir()
        (root / "models" / "__init__.py").write_text("")
        samples = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
        for example in EXAMPLES.values():
            code = example.code.replace("example::soft_sign", f"{example.name}::soft_sign")
            code = code.replace("torch.ops.example.", f"torch.ops.{example.name}.")
            (root / "models" / f"{example.name}.py").write_text(HEAD + code + TAIL)
            paths.build(example.name, "data").mkdir(parents=True)
            np.savez(paths.build(example.name, "data") / "evaluation.npz", x=samples)
        refusals = isolated_call.call(600, export_all, root)
        for example in EXAMPLES.values():
            example.refused = refusals[example.name]
        yield root
        forget_models()


def export_all(root: Path) -> dict[str, str]:
    """The reason why each example is rejected; empty if it is not."""
    refusals = {}
    for example in EXAMPLES.values():
        settings, folder = example.settings(), root / example.name
        folder.mkdir()
        assert settings.build is not None
        weights = paths.build(example.name, "train") / "model.safetensors"
        weights.parent.mkdir()
        save_file(load_module(settings.build, None).state_dict(), weights)
        refusals[example.name] = ""
        try:
            written = _export(
                example.name,
                settings,
                example.claim["strategy"],
                weights,
                folder / "model.onnx",
                folder / "answers.npz",
            )
            refusals[example.name] = diagnostics.traced(written.baked)
        except Exception as error:
            refusals[example.name] = diagnostics.explain(f"{type(error).__name__}: {error}")
    return refusals


def verdict(example: Example, root: Path) -> tuple[str, list[str]]:
    """Why the example fails, and its findings."""
    if example.refused:
        return example.refused, []
    settings, folder = example.settings(), root / example.name
    target = folder / "model.onnx"
    try:
        _sound(example.name, settings, target, paths.build(example.name, "train") / "model.safetensors")
    except _Unsound as refused:
        return str(refused), []
    expected = recall(folder / "answers.npz", cases(example.name, settings, Verify()))
    with Worker.onnx(target, example.name) as worker:
        fell = misdeclared(expected, settings.outputs, settings.dims) or sentence(check(worker, expected, Tolerance()))
    found = list(diagnostics.findings(onnx.load(target)))
    return fell and f"outputs differ from the module's: {fell}", found


@pytest.mark.parametrize("label", EXAMPLES)
def test_every_example_behaves_as_the_page_says(label: str, exported: Path) -> None:
    example = EXAMPLES[label]
    said, found = verdict(example, exported)
    if "passes" in example.claim:
        assert said == ""
    else:
        assert example.claim["refused"] in said
    if "finding" in example.claim:
        assert example.claim["finding"] in " ".join(found)
    else:
        assert found == []


def test_the_page_has_passing_and_failing_examples() -> None:
    assert sum("passes" in example.claim for example in EXAMPLES.values()) >= 8
    assert sum("refused" in example.claim for example in EXAMPLES.values()) >= 6
