"""Look at MLflow's own pages in Chromium, as a person would.

    python -m tests.browser sqlite:///mlflow.db docs/images --model cnn

writes the screenshots of the documentation from a store (`make screenshots`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

from tests.servers import free_port

# What a person clicked before: "Model training", and the assistant closed.
_SETTLED = """
localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""
# Milliseconds until a page must show what is expected; a busy machine takes long to draw it.
PATIENCE = 60_000


def chromium() -> str:
    """The path of Chromium; an error says how to install it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "Chromium is missing: install Debian's package chromium (`make chromium`)"
    return found


@contextmanager
def mlflow_pages(store: str, log: Path) -> Iterator[str]:
    """Serve the pages of a store, and yield their address.

    Args:
        store: the store's URI.
        log: the file for the server's output.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    with open(log, "wb") as file:
        server = subprocess.Popen([*command, "--workers", "1"], stdout=file, stderr=file)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser without history."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1500, "height": 900})
        context.add_init_script(_SETTLED)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        try:
            yield page
        finally:
            browser.close()


def see(page: Page, address: str, picture: Path, *texts: str) -> str:
    """Open a page, wait until it shows some texts, keep a picture of it, and return all of its text.

    Args:
        page: the browser's page.
        address: the address to open.
        picture: the PNG file to write.
        texts: the texts to wait for.
    """
    page.goto("about:blank")  # an address that differs in its fragment only would not load again
    page.goto(address)
    for text in texts:
        page.get_by_text(text).first.wait_for()
    page.wait_for_timeout(1500)  # until animations and fonts have settled
    if "compareRunsMode=CHART" in address:
        page.locator(".js-plotly-plot").nth(2).wait_for()
        page.wait_for_timeout(1500)
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=picture)
    return page.inner_text("body")


def main() -> None:
    """Write the screenshots of the documentation."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("store", help="the URI of a store with published models")
    parser.add_argument("folder", type=Path, help="where the PNG files go")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--experiment", default="onward")
    arguments = parser.parse_args()
    client, model = MlflowClient(arguments.store, arguments.store), arguments.model
    experiment = client.get_experiment_by_name(arguments.experiment)
    assert experiment is not None, "there is no such experiment"
    runs = f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    with mlflow_pages(arguments.store, Path("/dev/null")) as address, browser_page() as page:
        see(page, f"{address}/{runs}onward-models", arguments.folder / "mlflow-experiment.png", "speedup", f"{model} ·")
        charts = f"{address}/{runs}onward-variants-{model}&compareRunsMode=CHART"
        see(page, charts, arguments.folder / "mlflow-variants.png", "p50_ms vs. ")
        see(page, f"{address}/#/models/{model}/versions/1", arguments.folder / "mlflow-version.png", "Limits")


if __name__ == "__main__":
    main()
