"""The files of deploy/: image, compose file and dashboard. Docker and Grafana are not needed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from onward.registry.serve.metrics import Metrics
from tests.conftest import ROOT, Command

DEPLOY = ROOT / "deploy"
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
# Grafana's own names in a query: functions and label keywords of PromQL, and variables.
PROMQL = {"rate", "increase", "min", "max", "sum", "by", "le", "histogram_quantile", "model", "version", "label_values"}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    begins = [number for number, (name, _) in enumerate(found) if name == "FROM"]
    return found[begins[-1] :]


def test_the_image_is_pinned_and_copies_files_that_exist() -> None:
    for name, rest in instructions():
        for package, number in re.findall(r"([A-Za-z][\w.-]*)==([\w.]+)", rest):
            assert f"\n{package}=={number}\n" in CONSTRAINTS, f"{package}=={number}"
        if name == "COPY":
            *sources, _ = rest.split()
            assert [source for source in sources if not (ROOT / source).exists()] == []
        if name == "RUN":
            for install in re.findall(r"pip install[^&]*", rest):
                assert "==" in install or "--constraint" in install, install
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert set(bases) == {"python:3.11-slim"}


def test_the_image_runs_as_a_user_without_privileges_and_is_checked() -> None:
    stage = last_stage()
    users = [rest for name, rest in stage if name == "USER"]
    assert users == ["10001:10001"]
    assert stage.index(("USER", users[0])) > max(i for i, (name, _) in enumerate(stage) if name == "RUN")
    environment = dict(
        shlex.split(" ".join(rest for name, rest in stage if name == "ENV"))[i].split("=") for i in range(4)
    )
    assert environment["XDG_CACHE_HOME"] == "/cache"
    assert ("VOLUME", "/cache") in stage
    (check,) = [rest for name, rest in stage if name == "HEALTHCHECK"]
    _, _, code = json.loads(check.partition("CMD ")[2])
    compile(code, "healthcheck", "exec")
    (path,) = re.findall(r"http://127\.0\.0\.1:8080(/[\w/]+)", code)
    rest_source = (ROOT / "registry" / "serve" / "rest.py").read_text()
    assert f'"{path}"' in rest_source


def test_the_commands_exist(onward: Command) -> None:
    (entry,) = [json.loads(rest) for name, rest in last_stage() if name == "ENTRYPOINT"]
    assert entry == ["onward"]
    service = compose()["services"]["onward"]
    words = shlex.split(service["command"])
    assert words[0] == "serve"
    code, text, _ = onward("serve", "--help")
    assert code == 0
    for word in words:
        assert not word.startswith("--") or word in text, word


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_the_service_has_no_privileges_and_a_read_only_file_system() -> None:
    service = compose()["services"]["onward"]
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["read_only"] is True
    assert service["user"] == dict(last_stage())["USER"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"] == ["cache:/cache"]
    assert set(compose()["volumes"]) == {"cache"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(str(value).startswith("${") for value in service["environment"].values()), "no secret is in the file"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    return found


def queries() -> Iterator[str]:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    yield from (variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query")
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def known_metrics() -> set[str]:
    """The names of all series that a server shows."""
    metrics = Metrics()
    for name in metrics.counters:
        metrics.count(("cnn", "1"), **{name: 1.0})
    metrics.set(("cnn", "1"), **dict.fromkeys(metrics.gauges, 1.0))
    for name in metrics.readers:
        metrics.read(name, lambda: (("cnn", "1"), 1.0))
    metrics.observe_batch(("cnn", "1"), 1)
    page = metrics.page().decode()
    return set(re.findall(r"^# TYPE (\S+)", page, re.M)) | set(re.findall(r"^(\w+)[ {]", page, re.M))


@pytest.mark.parametrize("query", sorted(queries()))
def test_the_dashboard_uses_metrics_that_exist(query: str) -> None:
    text = re.sub(r'"[^"]*"|\$\w+|\[[^]]*\]', " ", query)
    used = set(re.findall(r"[a-z_][a-z_0-9]*", text)) - PROMQL
    assert used
    assert used - known_metrics() == set()


def test_every_panel_has_a_title_a_unit_and_a_place_of_its_own() -> None:
    found = panels()
    titles = [panel["title"] for panel in found]
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"])
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in found
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)


def test_the_dashboard_shows_every_metric_of_models() -> None:
    shown, metrics = " ".join(queries()), Metrics()
    names = (*metrics.counters, *metrics.gauges, *metrics.readers)
    assert [name for name in names if not re.search(rf"\b{name}\b", shown)] == []
