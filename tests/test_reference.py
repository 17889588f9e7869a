"""The reference of a version: small, the same each time, without samples, and signed with the version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.registry.artifact.manifest import check_folder, read_manifest
from onward.registry.errors import Refused
from onward.registry.evidence.records import OutputKind
from onward.registry.monitoring.reference import LARGEST, PATH, Reference, build, read, write
from onward.registry.tracking.recorder import publish
from onward.stages.publish import REFERENCE_SAMPLES, _joined, _one_step, _thinned
from tests.evidence_factory import make_publication


def arrays(count: int = 300) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.normal(0, 1, (count, 4)).astype(np.float32),
        "image": rng.normal(0, 1, (count, 3, 16, 16)).astype(np.float32),
        "ids": rng.integers(0, 5000, (count, 64)),
        "text": np.array([f"patient {number} secret" for number in range(count)]),
    }
    return inputs, {"y": rng.normal(0, 1, (count, 5))}


KINDS = [OutputKind(output="y", kind="scores", axis=1)]


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(build(*arrays(), KINDS), tmp_path / name)
    first, second = ((tmp_path / name / PATH).read_bytes() for name in ("first", "second"))
    assert first == second
    assert len(first) <= LARGEST
    assert b"\r" not in first


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = build(*arrays(), KINDS, {"y": 1, "x": None})
    write(made, tmp_path)
    found = read(tmp_path)
    assert found == made
    assert found.samples_first("y", np.zeros((5, 7))).shape == (7, 5)
    assert found.samples_first("x", np.zeros(4)).shape == (1, 4)
    assert found.samples_first("image", np.zeros((2, 3))).shape == (2, 3)


def test_noise_in_the_last_digits_changes_no_byte() -> None:
    inputs, outputs = arrays()
    other = {**inputs, "x": inputs["x"].astype(np.float64) * (1 + 1e-15)}
    same = {**inputs, "x": inputs["x"].astype(np.float64)}
    assert build(other, outputs, KINDS).to_json() == build(same, outputs, KINDS).to_json()


def test_a_version_without_a_reference_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"tensors": 3}', b'{"unknown": 1}', b"\xff"])
def test_a_damaged_reference_is_refused(tmp_path: Path, content: bytes) -> None:
    write(Reference(), tmp_path)
    (tmp_path / PATH).write_bytes(content)
    with pytest.raises(Refused, match=r"monitoring/reference\.json cannot be read"):
        read(tmp_path)


def test_the_file_has_a_limit_and_outputs_come_first() -> None:
    rng = np.random.default_rng(1)
    inputs = {f"x{number}": rng.normal(0, 1, (500, 32)) for number in range(20)}
    found = build(inputs, {"y": rng.normal(0, 1, (500, 3))})
    assert len(found.to_json()) <= LARGEST
    assert found.left_out > 0
    titles = [found.title(feature) for feature in found.features]
    assert titles[0] == "output y[0]"
    assert {f"input x{number}[0]" for number in range(20)} <= set(titles)


def test_the_file_contains_no_text_and_no_sample() -> None:
    inputs, outputs = arrays()
    text = build(inputs, outputs, KINDS).to_json()
    assert "secret" not in text
    assert "patient" not in text
    binned = [feature for feature in build(inputs, outputs, KINDS).features if feature.family == "bins"]
    assert (
        min(count for feature in binned for count in feature.counts if count) > 1
    )  # a bin's mean is no sample's value


def test_tensors_with_few_samples_or_no_elements_are_left_out() -> None:
    found = build({"few": np.zeros((3, 2)), "empty": np.zeros((100, 0)), "scalar": np.float32(3), "none": None}, {})  # type: ignore[dict-item]
    assert not found.features


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.zeros(100, bool), {""}),
        (np.arange(100), {""}),
        (np.arange(200, dtype=np.uint8).reshape(100, 2), {"[0]", "[1]"}),
        (np.arange(100 * 48, dtype=np.uint8).reshape(100, 4, 4, 3), {"mean of channel 1", "spread of channel 3"}),
        (np.ones((100, 6, 6)) * np.arange(100)[:, None, None], {"mean", "spread", "projections", "not finite"}),
        (np.arange(100.0)[:, None], {"", "not finite"}),
    ],
    ids=["bool", "integers", "bytes", "images", "floats", "one column"],
)
def test_the_features_follow_from_type_and_shape(values: Any, labels: set[str]) -> None:
    assert labels <= {feature.label for feature in build({"x": values}, {}).features}


def test_a_version_is_published_with_its_reference_which_cannot_be_changed(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    rng = np.random.default_rng(2)
    made = build({"x": rng.normal(0, 1, (100, 4))}, {"y": rng.normal(0, 1, (100, 3))})
    report = publish(replace(make_publication(tmp_path), reference=made))
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/toy/1", dst_path=str(tmp_path / "got")))
    assert PATH in {file.path for file in read_manifest(folder)}
    check_folder(folder, report.sha256)
    assert read(folder) == made
    (folder / PATH).write_text(made.model_copy(update={"left_out": 7}).to_json())
    with pytest.raises(Refused, match=r"monitoring/reference\.json has changed"):
        check_folder(folder, report.sha256)
    (folder / PATH).unlink()
    with pytest.raises(Refused, match=r"monitoring/reference\.json is missing"):
        check_folder(folder, report.sha256)


def test_large_sets_are_thinned_out_and_sequences_give_one_step_each() -> None:
    from onward.stages.config.layout import Layout

    layout = Layout("batch", {"x": 0, "shared": None}, {"y": 0})
    samples = {"x": np.arange(10_000), "shared": np.arange(5), "label": np.zeros(10_000)}
    found = _thinned(layout, samples)
    assert set(found) == {"x", "shared"}
    assert len(found["x"]) == REFERENCE_SAMPLES
    assert (found["x"][0], found["x"][-1], len(found["shared"])) == (0, 9999, 5)
    steps = np.arange(12).reshape(4, 3)
    assert _one_step(steps).tolist() == [0, 4, 8, 9]
    assert _joined([np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((4, 5))]).shape == (6, 3)  # type: ignore[union-attr]
    assert _joined([]) is None
