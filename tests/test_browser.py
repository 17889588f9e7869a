"""MLflow's pages show what people look for. A real server and Chromium; `SCREENSHOTS=folder` keeps the pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page

from onward.registry.evidence.metric_names import HEADLINE
from onward.registry.operations import promotion
from onward.registry.tracking.recorder import publish
from tests.browser import browser_page, mlflow_pages, see
from tests.conftest import not_none
from tests.evidence_factory import make_publication

PICTURES = os.environ.get("SCREENSHOTS")
# Are these the columns that the table shows after the three fixed ones, from left to right?
_COLUMNS_ARE = """wanted => {
    const cells = [...document.querySelectorAll('.ag-header-cell')];
    cells.sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left);
    const shown = cells.map(cell => cell.getAttribute('col-id')).slice(3, 3 + wanted.length);
    return JSON.stringify(shown) === JSON.stringify(wanted);
}"""


@pytest.fixture(scope="module")
def store(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with a released model, which is live in staging, and a failed one."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copy(empty_database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        uri = f"sqlite:///{root / 'mlflow.db'}"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setenv("ONWARD_ACTOR", "ada")
        patch.chdir(root)
        (root / "dvc.yaml").write_text("stages: {}\n")
        (root / "params.yaml").write_text("environments: {staging: {from: candidate, require: [parity]}}\n")
        publish(make_publication(root))
        publish(make_publication(root, model="broken", failed="a branch depends on input values"))
        promotion.promote("toy", "staging", 1, reason="first release")
        yield uri


@pytest.fixture(scope="module")
def address(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_pages(store, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser_page() as page:
        yield page


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(PICTURES).absolute() if PICTURES else tmp_path


def experiment(store: str, name: str = "tests") -> str:
    return not_none(MlflowClient(store, store).get_experiment_by_name(name)).experiment_id


def test_the_experiment_leads_to_columns_and_charts(store: str, address: str, page: Page, pictures: Path) -> None:
    number = experiment(store)
    said = see(page, f"{address}/#/experiments/{number}", pictures / "experiment.png", "toy ·", "broken ·")
    assert "2026-11-27 03:00" in said
    assert "dvc.yaml" in said
    assert "toy-evaluation" in said
    link = page.get_by_role("link", name="All models, one row per measurement").first.get_attribute("href")
    shown = see(page, f"{address}/{link}", pictures / "models.png", "1.25", "ada")
    assert "5 matching runs" not in shown
    wanted = [f"metrics.`{name}`" for name in HEADLINE if name != "fidelity_snr_db"] + ["tags.`onward.variant`"]
    page.wait_for_function(_COLUMNS_ARE, arg=wanted)
    link = f"{address}/#/experiments/{number}/runs?viewStateShareKey=onward-variants-toy&compareRunsMode=CHART"
    said = see(page, link, pictures / "variants.png", "p50_ms vs. quality", "toy · plain", "toy · fast")
    assert "Latency and quality" in said


def test_a_version_shows_its_card_and_its_origin(address: str, page: Page, pictures: Path) -> None:
    said = see(page, f"{address}/#/models/toy/versions/1", pictures / "version.png", "Limits", "Quality")
    assert "fast on cpu, 1.25 times as fast as the plain export" in said
    assert "Source Run" in said
    assert "toy · 2026-11-27 03:00" in said


def test_the_live_copy_has_metrics_and_says_where_it_is_live(
    store: str, address: str, page: Page, pictures: Path
) -> None:
    client = MlflowClient(store, store)
    number = experiment(store, "environments/staging")
    [copy] = client.search_logged_models([number])
    link = f"{address}/#/experiments/{number}/models/{copy.model_id}"
    said = see(page, link, pictures / "copy.png", "staging.toy", "p50_ms")
    assert "Not registered" not in said
    said = see(page, f"{address}/#/models/staging.toy", pictures / "log.png", "first release", "Live: version 1")
    assert "Version 1" in said
