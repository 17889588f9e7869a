"""The mutants of `make mutants`, and the results in benchmarks/mutants.json."""

from __future__ import annotations

import ast
import importlib.util
import json

import yaml

from benchmarks.mutants import MODULES, Score, able
from benchmarks.mutations import mutants
from benchmarks.trials import PACKAGE, _Finder
from tests.conftest import ROOT

SOURCE = '''"""Words."""
LIMIT = 3

def judge(values, found=None, *, exact=True):
    """More words."""
    assert values is not None, "mypy"
    if found and len(values) > LIMIT:
        raise ValueError(f"{len(values) + 1} are more than {LIMIT}")
    for value in sorted(v for v in values if v != 0):
        found.append(keep(value, twice=True))
    return not exact

class Told:
    @property
    def last(self):
        return self.values[-1:] or None

    def __str__(self):
        return "one" if self.last == 1 else "more"
'''


def test_every_kind_of_mutation_is_made_once_and_strings_are_not_mutated() -> None:
    found = list(mutants(SOURCE, frozenset()))
    for mutant in found:
        ast.parse(mutant.source)
        assert mutant.source != SOURCE
    names = [mutant.name for mutant in found]
    assert len(set(names)) == len(names)
    changes = [name.split(" -> ")[1] for name in names]
    for wanted in (
        "LIMIT = 4", "exact=False", "(len(values) >= (LIMIT))", "((found) or (len(values) > LIMIT))", "((found))",
        "if True:", "if False:", "pass", "in ():", "(list((v for v in values if v != 0)))", "(v == (0))", "v != 1",
        "(keep(value))", "twice=False", "return None", "return (exact)", "(self.values)", "or None",
    ):  # fmt: skip
        assert any(wanted in change for change in changes), wanted
    for text in ("words", "mypy", "more than", "one", "more"):
        assert not any(f"…{text}" in change for change in changes)
    assert not any("assert" in name or "__str__" in name for name in names)
    assert not any(mutant.name.startswith("judge") for mutant in mutants(SOURCE, frozenset({"judge"})))


def test_a_mutant_is_tested_by_the_tests_that_run_its_line_fastest_first() -> None:
    ran = {"slow": (2.0, {7, 8}), "quick": (1.0, {7}), "other": (0.1, {9})}
    found = {mutant.line: mutant for mutant in mutants(SOURCE)}
    assert able(found[7], ran) == ["quick", "slow"]
    assert able(found[8], ran) == ["slow"]
    assert able(found[2], ran) == ["other", "quick", "slow"]  # code that runs on import runs in every test
    assert able(found[16], ran) == []


def test_a_fault_is_put_into_the_module_that_the_tests_import() -> None:
    for module in MODULES:
        name = _Finder(PACKAGE / module, "")._name
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin == str(PACKAGE / module)


def test_every_survivor_is_explained_and_over_ninety_percent_of_mutants_are_killed() -> None:
    scores = {name: Score(**said) for name, said in json.loads((ROOT / "benchmarks/mutants.json").read_text()).items()}
    known = yaml.safe_load((ROOT / "benchmarks/mutants_known.yaml").read_text())
    assert scores.keys() <= MODULES.keys()
    page = (ROOT / "benchmarks/mutants.md").read_text()
    for name, score in scores.items():
        assert score.found + len(score.survivors) == score.mutants
        assert score.found >= 0.9 * score.mutants
        for survivor in score.survivors:
            assert known[name][survivor] in page
