"""`onward diff` and `onward compare` on two versions in a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onward.registry.errors import Refused, UsageError
from onward.registry.operations import comparison as diff
from onward.registry.operations import promotion
from onward.registry.operations.comparison import Comparison, Fact
from onward.registry.store.store import Store
from tests.conftest import Command
from tests.evidence_factory import register
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def fact(comparison: Comparison, name: str) -> Fact:
    return next(fact for fact in comparison.facts if fact.name == name)


def test_a_candidate_is_compared_with_the_live_version(store: Store, tmp_path: Path) -> None:
    first = register(tmp_path, scale=1.0, p50=1.0)
    second = register(tmp_path, scale=2.0, p50=3.0)
    promotion.promote("toy", "staging", first, reason="because", store=store)
    found = diff.compare("toy@staging", f"toy/{second}", store)
    assert (found.left.environment, found.left.version, found.right.version) == ("staging", first, second)
    latency = fact(found, "latency/b1_p50_ms")
    assert (latency.section, latency.left) == ("latencies", 0.8)
    assert latency.right == pytest.approx(2.4)
    assert latency.change == pytest.approx(2)
    assert {"opset ai.onnx", "parameters", "MatMul", "variant", "export.opset", "quality"} <= {
        f.name for f in found.facts if not f.differs
    }
    assert found.notes == ()


def test_a_version_does_not_differ_from_itself(store: Store, tmp_path: Path) -> None:
    register(tmp_path)
    assert diff.compare("toy/1", "toy/1", store).different() == []


def test_a_different_graph_shows_its_operators(store: Store, tmp_path: Path) -> None:
    register(tmp_path, model="cnn")
    version = add_candidate(store, "cnn")
    found = diff.compare("cnn/1", f"cnn/{version}", store)
    assert (fact(found, "MatMul").right, fact(found, "Mul").left) == (None, None)
    assert fact(found, "Mul").section == "operators"
    assert fact(found, "parameters").differs


def test_the_live_version_is_compared_without_its_run(store: Store, tmp_path: Path) -> None:
    add_candidate(store, "cnn", 1, run_id="0" * 32)
    add_candidate(store, "cnn", 2, quality="0.97")
    for version, environment in ((1, "staging"), (2, "staging")):
        promotion.promote("cnn", environment, version, reason="because", store=store)
    promotion.rollback("cnn", "staging", reason="because", store=store)
    store._client.delete_model_version("cnn", "1")
    found = diff.compare("cnn@staging", "cnn/2", store)
    assert (fact(found, "quality").left, fact(found, "quality").right) == (0.98, 0.97)
    assert "the run of cnn@staging was deleted" in found.notes[0]


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("cnn@staging", Refused, "nothing is live in staging of cnn"),
        ("cnn/7", UsageError, "no version 7 of cnn"),
        ("cnn", UsageError, "is not a target: give MODEL@ENVIRONMENT, MODEL/VERSION"),
    ],
)
def test_unknown_targets_are_rejected(store: Store, target: str, error: type[Exception], message: str) -> None:
    add_candidate(store, "cnn")
    with pytest.raises(error, match=message):
        diff.compare(target, "cnn/1", store)


def test_the_command_prints_the_differences_and_all_facts_as_json(store: Store, onward: Command) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor, quality=str(factor / 4))
    code, out, _ = onward("diff", "cnn/1", "cnn/2")
    assert code == 0
    assert out.splitlines()[0].split() == ["cnn/1", "cnn/2", "change"]
    assert out.splitlines()[1].split() == ["evidence", "quality", "0.25", "0.5", "+0.25"]
    assert "facts are the same" in out
    code, compared, _ = onward("compare", "cnn", "1", "2", "--json")
    assert (code, compared) == (0, onward("diff", "cnn/1", "cnn/2", "--json")[1])
    facts = json.loads(compared)["facts"]
    assert [f["name"] for f in facts if f["differs"]] == ["quality"]
    assert len(facts) > 10


@pytest.mark.parametrize(
    ("section", "name", "left", "right", "words"),
    [
        ("latencies", "latency/b1_p50_ms", 2.0, 3.0, "+50.0%"),
        ("latencies", "throughput/b1_items_per_s", 1000.0, 500.0, "-50.0%"),
        ("latencies", "ratio/all", 0.5, 0.25, "-0.25"),
        ("latencies", "latency/b1_p50_ms", 1.0, 25.0, "+24"),
        ("metrics", "size_mb", 2.0, 0.5, "-75.0%"),
        ("metrics", "sweep_cpu/batch4_throughput", 100.0, 110.0, "+10.0%"),
        ("metrics", "parity/y_max_abs", 1.2e-7, 0.933662, "+0.9337"),
        ("metrics", "parity/y_cosine", 1.0, 0.22, "-0.78"),
        ("metrics", "snr_db", 80.0, 40.0, "-40"),
        ("metrics", "fidelity/y_loss", 0.0, 0.03, "+0.03"),
        ("metrics", "reduction", -0.1, 0.7, "+0.8"),
        ("evidence", "quality_drop", 1e-9, 0.01, "+0.01"),
        ("evidence", "quality", 0.98, 0.97, "-0.01"),
        ("graph", "opset ai.onnx", 17, 20, "+3"),
        ("graph", "parameters", 100, 150, "+50.0%"),
        ("operators", "MatMul", 4, 5, "+25.0%"),
        ("operators", "MatMul", None, 5, ""),
        ("params", "precision", "float32", "int8", ""),
    ],
)
def test_amounts_show_a_percentage_and_other_figures_a_difference(
    section: str, name: str, left: float | str | None, right: float | str, words: str
) -> None:
    assert Fact(section, name, left, right).in_words == words


@given(
    st.sampled_from(
        [("latencies", "latency/b1_p50_ms"), ("metrics", "parity/y_max_abs"), ("metrics", "size_mb"),
         ("operators", "Add"), ("evidence", "quality_drop")]
    ),
    *[st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.none(), st.text(max_size=3))] * 2,
)  # fmt: skip
@example(("metrics", "parity/y_max_abs"), 1.2e-7, 0.933662)
@example(("metrics", "size_mb"), 5e-324, 1e308)
@example(("metrics", "size_mb"), -1e308, 1e308)
def test_every_change_is_finite_and_has_at_most_four_digits(fact: tuple[str, str], left: float, right: float) -> None:
    words = Fact(*fact, left, right).in_words
    assert "nan" not in words
    assert "inf" not in words
    if words.endswith("%"):
        assert len(words.strip("+-%").split(".")[0].rstrip("%")) <= 4
        assert left * right > 0
    elif words:
        assert float(words) != 0


def test_a_tag_that_is_not_a_finite_number_is_text() -> None:
    assert [diff._number(text) for text in ("1.5", "nan", "inf", "fast")] == [1.5, "nan", "inf", "fast"]
