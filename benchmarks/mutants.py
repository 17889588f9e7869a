"""Mutation testing: put small faults (benchmarks/mutations.py) into decision code, one at a time, and run its tests.

    python -m benchmarks.mutants                     # all of MODULES: writes benchmarks/mutants.md and mutants.json
    python -m benchmarks.mutants registry/trust/chain.py   # one module: prints survivors, updates both files
    python -m benchmarks.mutants --again             # after adding tests: only the survivors of the last run

First, the tests of each module run on unchanged code, and the lines that each test executes are recorded. Then, for
each fault, the tests that execute its line run, the quickest first, in a forked process with the libraries loaded. A
fault is found if a test fails, or if the tests take much longer than before.

A survivor is a fault that no test found. benchmarks/mutants_known.yaml explains survivors that do not change the
program's behaviour. The exit code is 1 if a survivor is not explained there.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import yaml

from benchmarks.mutations import Mutant, mutants
from benchmarks.trials import PACKAGE, ROOT, Watch, apart, run_tests

HERE = ROOT / "benchmarks"
# The tests of each module.
MODULES: dict[str, list[str]] = {
    "registry/log/entries.py": ["test_deployments"],
    "registry/trust/chain.py": ["test_chain", "test_layout"],
    "registry/store/schema.py": ["test_layout", "test_chain"],
    "registry/artifact/manifest.py": ["test_manifest", "test_external_data"],
    "registry/gates/builtin.py": ["test_gates"],
    "registry/gates/policy.py": ["test_policy"],
    "registry/trust/entry_signatures.py": ["test_signatures"],
    "registry/gates/four_eyes.py": ["test_four_eyes"],
    "registry/operations/choice.py": ["test_operations", "test_store", "test_suites"],
    "registry/operations/promotion.py": ["test_deploying", "test_operations"],
    "registry/store/store.py": ["test_appending"],
    "stages/parity/compare.py": ["test_compare"],
    "stages/select.py": ["test_select", "test_choice"],
    "stages/measuring/statistics.py": ["test_choice"],
}
# Functions that only compose messages.
TEXTS = {
    "stages/select.py": frozenset({"_why_best", "_why_not", "_interval"}),
    "stages/parity/compare.py": frozenset({"_mismatch"}),
}
# Loaded before the first fork, so that no fault has to load them.
LIBRARIES = (
    "mlflow.tracking", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "scipy.stats", "onnx", "onnxruntime",
    "cryptography.hazmat.primitives.serialization", "hypothesis.strategies", "typer", "rich.table",
)  # fmt: skip
# The most seconds of tests that are run for one fault.
LONGEST_S = 30.0


# Seconds and executed lines of one module, by test.
Ran = dict[str, tuple[float, set[int]]]


@dataclass
class Score:
    """The result for one module.

    Attributes:
        mutants: number of faults.
        found: number of faults that tests found, timeouts included.
        out_of_time: number of faults found by a timeout.
        seconds: duration of the run.
        date: of the run.
        survivors: names of the faults that no test found.
    """

    mutants: int
    found: int
    out_of_time: int
    seconds: int
    date: str
    survivors: list[str] = field(default_factory=list)


def baseline(modules: Sequence[str], files: list[str], database: str) -> dict[str, Ran]:
    """Run the tests on unchanged code; return the seconds and executed lines of each test, by module.

    Raises:
        SystemExit: a test fails.
    """
    paths = {module: str(PACKAGE / module) for module in modules}
    with tempfile.NamedTemporaryFile("r") as results_file:

        def work() -> int:
            watch = Watch(database, paths=tuple(paths.values()))
            code = run_tests(files, watch)
            Path(results_file.name).write_text(json.dumps({"ran": watch.ran, "failed": watch.failed}))
            return code

        code = apart(work, 1800)
        results = json.load(results_file) if code in (0, 1) else {}
    if code != 0:
        failed = results.get("failed")
        raise SystemExit(f"{', '.join(modules)}: tests fail on unchanged code (exit code {code}): {failed}")
    return {
        module: {name: (seconds, set(lines[path])) for name, (seconds, lines) in results["ran"].items()}
        for module, path in paths.items()
    }


def able(mutant: Mutant, ran: Ran) -> list[str]:
    """The tests that execute the line of a fault, the quickest first; all tests if it is outside functions."""
    span = set(range(mutant.lines[0], mutant.lines[1] + 1)) if mutant.lines else None
    hit = [name for name, (_, lines) in ran.items() if span is None or lines & span]
    return sorted(hit, key=lambda name: ran[name][0])


def judge(path: Path, ran: Ran, database: str, before: Score | None) -> Score:
    """Try every fault of a module, or only the survivors of `before`.

    Raises:
        SystemExit: the module has changed since `before`, or the tests could not be run.
    """
    start = time.monotonic()
    every = list(mutants(path.read_text(), TEXTS.get(path.relative_to(PACKAGE).as_posix(), frozenset())))
    tried = [mutant for mutant in every if before is None or mutant.name in before.survivors]
    if before is not None and (len(every), len(tried)) != (before.mutants, len(before.survivors)):
        raise SystemExit(f"{path.name} has changed since its last run: try it without --again")
    late = before.out_of_time if before else 0
    survivors = []
    for number, mutant in enumerate(tried, 1):
        wanted, seconds = [], 0.0
        for name in able(mutant, ran):
            if seconds > LONGEST_S:
                break
            wanted.append(name)
            seconds += ran[name][0]
        code: int | None = 0
        if wanted:
            chosen = sorted({name.split("::")[0] for name in wanted})
            watch = Watch(database, wanted)
            code = apart(partial(run_tests, chosen, watch, (path, mutant.source)), 20 + 5 * seconds)
        late += code is None
        if code in (4, 5, 70):  # pytest was called wrongly, found no test, or could not start
            raise SystemExit(f"{mutant.name}: the tests could not be run (exit code {code})")
        if code == 0:
            survivors.append(mutant.name)
            print(f"  line {mutant.line} survives{'' if wanted else ' (never executed)'}: {mutant.name}", flush=True)
        print(f"{number}/{len(tried)}", end="\r", file=sys.stderr)
    taken = round(time.monotonic() - start) + (before.seconds if before else 0)
    today = datetime.now(UTC).date().isoformat()
    return Score(len(every), len(every) - len(survivors), late, taken, today, survivors)


def page(scores: dict[str, Score], known: dict[str, dict[str, str]]) -> str:
    """The text of benchmarks/mutants.md."""
    rows, left = [], []
    for module, score in scores.items():
        reasons = known.get(module, {})
        equal = sum(name in reasons for name in score.survivors)
        rows.append(
            f"| `{module}` | {score.mutants} | {score.found} | {score.found / score.mutants:.1%} | {equal} | "
            f"{len(score.survivors) - equal} | {score.seconds / 60:.0f} min | {score.date} |"
        )
        if score.survivors:
            left += [f"\n### {module}\n"]
            left += [f"- `{name}`  \n  {reasons.get(name, '**not explained**')}" for name in score.survivors]
    table = "\n".join(rows)
    return (HERE / "mutants_head.md").read_text().replace("{table}", table) + "\n".join(left) + "\n"


def read(record: Path) -> dict[str, Score]:
    """Read the scores in benchmarks/mutants.json by their modules."""
    return {name: Score(**fields) for name, fields in json.loads(record.read_text()).items()}


def prepare() -> str:
    """Load the libraries of all tests, and make an empty database; return its path."""
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = False  # compile the tests and the other modules only once
    os.chdir(ROOT)
    os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in LIBRARIES:
        importlib.import_module(name)
    code = "from tests.store_factory import _empty_database; print(_empty_database())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    gc.freeze()  # forks need not scan these objects
    return done.stdout.split()[-1]


def main() -> int:
    """Try the faults of the given modules, write the results; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="paths of modules; default: all of MODULES")
    parser.add_argument("--again", action="store_true", help="try only the survivors of the last run")
    options = parser.parse_args()
    modules = options.modules or list(MODULES)
    database = prepare()
    record = HERE / "mutants.json"
    known = yaml.safe_load((HERE / "mutants_known.yaml").read_text())
    unexplained = 0
    ran: dict[str, Ran] = {}
    for module in modules:
        print(module, flush=True)
        if module not in ran:
            files = [f"tests/{name}.py" for name in MODULES[module]]
            ran |= baseline([other for other in modules if MODULES[other] == MODULES[module]], files, database)
        score = judge(PACKAGE / module, ran[module], database, read(record).get(module) if options.again else None)
        print(f"  {score.found} of {score.mutants} found, {score.seconds} s", flush=True)
        found = {**read(record), module: score}  # read again: another run may have added its lines meanwhile
        scores = {name: found[name] for name in MODULES if name in found}
        record.write_text(json.dumps({name: asdict(score) for name, score in scores.items()}, indent=1) + "\n")
        (HERE / "mutants.md").write_text(page(scores, known))
        unexplained += sum(name not in known.get(module, {}) for name in score.survivors)
    return min(unexplained, 1)


if __name__ == "__main__":
    sys.exit(main())
