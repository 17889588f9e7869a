"""The report of a model: the page in a real browser, the table of variants, and where both find their evidence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.records import Choice, Ratio
from onward.registry.evidence.reports import REPORTS, OnHost, Report, load, save
from onward.registry.evidence.uncertainty import overlap
from onward.registry.operations import promotion
from onward.registry.report import tradeoff
from onward.registry.report.material import Material, in_build, read_material
from onward.registry.report.page import render, render_comparison
from onward.registry.report.sections import Sections
from onward.registry.report.variants import variant_rows
from onward.registry.store.store import Store
from onward.registry.tracking.metrics import host_metrics, version_tags
from tests.conftest import ROOT, Command, not_none
from tests.report_factory import HOSTILE, LONG, make_material
from tests.store_factory import add_candidate, fresh_store

WIDTHS = {"phone": 375, "tablet": 820, "desktop": 1440}
FAILED = "operator aten::foo is not supported\nsecond line"
MATERIALS = {
    "usual": make_material("usual"),
    "forty": make_material("forty", 40),
    "one": make_material("one", 1),
    "without-quality": make_material("without-quality", quality=False),
    "hostile": make_material(f"toy{HOSTILE}", 6, hostile=HOSTILE),
    "failed": make_material("failed", failed=FAILED),
}


@dataclass
class Opened:
    """A page in the browser: the page, what its console said, and the addresses that it asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for name, material in MATERIALS.items():
        (folder / f"{name}.html").write_text(render(material), encoding="utf-8")
    left, right = make_material("cnn@staging"), make_material("cnn@production", 6, scale=1.4)
    (folder / "compared.html").write_text(render_comparison(left, right), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser: Any, path: Path, width: str = "desktop", theme: str = "light") -> Opened:
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900}, color_scheme=theme)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda said: opened.complaints.append(said.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    opened.page.wait_for_function("document.body.dataset.charts === 'drawn'", timeout=60_000)
    return opened


@pytest.mark.parametrize(
    ("name", "width", "theme"),
    [
        ("usual", "phone", "dark"), ("usual", "tablet", "light"), ("usual", "desktop", "light"),
        ("forty", "phone", "light"), ("hostile", "phone", "dark"), ("one", "tablet", "dark"),
        ("without-quality", "phone", "light"), ("failed", "phone", "dark"), ("compared", "desktop", "dark"),
    ],
)  # fmt: skip
def test_a_page_fits_every_screen_and_loads_nothing(
    browser: Any, pages: Path, name: str, width: str, theme: str
) -> None:
    opened = open_page(browser, pages / f"{name}.html", width, theme)
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert opened.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    figures = opened.page.locator("figure")
    drawn = opened.page.locator("figure .chart[data-drawn=true] svg")
    assert figures.count() == drawn.count()
    assert figures.count() >= (0 if name == "failed" else 4)
    alternatives = opened.run("[...document.querySelectorAll('.chart')].map((one) => one.getAttribute('aria-label'))")
    assert all(len(text or "") > 40 for text in alternatives)
    assert opened.run(
        "[...document.querySelectorAll('.chart svg')].every((one) => one.getBoundingClientRect().width"
        " <= one.closest('figure').clientWidth)"
    )
    bright = opened.run("getComputedStyle(document.body).backgroundColor").startswith("rgb(24")
    assert bright == (theme == "light")
    assert (pages / f"{name}.html").stat().st_size < 2_000_000
    opened.page.context.close()


def test_every_variant_is_named_with_its_reason_and_in_the_chart(browser: Any, pages: Path) -> None:
    for width in ("phone", "desktop"):
        opened = open_page(browser, pages / "forty.html", width)
        text = opened.page.inner_text("#variants")
        rows = variant_rows(MATERIALS["forty"].evidence)
        assert len(rows) == 42
        assert all(row.label in text and row.reason in text for row in rows)
        labels = opened.run("[...document.querySelectorAll('#a-tradeoff svg text')].map((one) => one.textContent)")
        for row in rows:
            if row.ratio is not None:
                assert any(re.match(rf"{row.number}( |$)", label) for label in labels), row.label
        opened.page.context.close()


def test_charts_follow_the_theme_and_the_width(browser: Any, pages: Path) -> None:
    opened = open_page(browser, pages / "usual.html")
    fill = "getComputedStyle(document.querySelector('#a-tradeoff .role-axis-label text, #a-tradeoff svg text')).fill"
    before = opened.run(fill)
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_function(f"{fill} !== {json.dumps(before)}")
    opened.page.set_viewport_size({"width": 375, "height": 800})
    opened.page.wait_for_function("document.querySelector('#a-tradeoff svg').getBoundingClientRect().width < 375")
    assert opened.complaints == []


def test_a_point_leads_to_its_variant_and_shows_its_figures(browser: Any, pages: Path) -> None:
    opened = open_page(browser, pages / "usual.html")
    point = opened.page.locator("#a-tradeoff [aria-label^='1: variant-1']").first
    point.hover()
    tooltip = opened.page.inner_text("#vg-tooltip-element")
    assert "variant-1" in tooltip
    assert "the fastest within the budget" in tooltip
    point.click()
    assert "focus" in opened.page.get_attribute("#a-variant-1", "class")


def test_markup_in_names_stays_text(browser: Any, pages: Path) -> None:
    opened = open_page(browser, pages / "hostile.html")
    assert opened.page.title() == f"Onward: toy{HOSTILE}"
    assert opened.page.locator("img").count() == 0
    assert HOSTILE in opened.page.inner_text("#variants")
    assert (pages / "hostile.html").read_text().count("<script") == 3


def test_verdict_comes_first_and_says_why(browser: Any, pages: Path) -> None:
    opened = open_page(browser, pages / "failed.html", "phone")
    assert opened.page.inner_text("h2.headline") == "Not released: export failed"
    assert "aten::foo is not supported second line" in opened.page.inner_text(".banner")
    assert opened.page.locator(".banner").bounding_box()["y"] < 300
    opened = open_page(browser, pages / "usual.html")
    banner = opened.page.inner_text(".banner")
    assert "Released: variant-1 on cpu" in banner
    assert f"Tied: the intervals of {LONG} overlap" in banner
    assert "1.89 ±8%" in opened.page.inner_text(".tiles")


def test_each_section_shows_its_evidence() -> None:
    page = render(MATERIALS["usual"])
    for text in (
        "rtol 0.001, atol 1e-05", "out of tolerance", "aborted: signal", "about 0.004 (0.001 to 0.02)",  # parity
        "QLinearConv",  # operators
        "float32[batch, 1, 28, 28]", "grey levels", "scores along axis 1: named logits",  # interface
        "<strong>latency</strong> met: 0.53 times", "rows", "no device",  # gates, data, runtimes
        "c" * 40, "0123456789abcdef" * 4, "Some CPU", "2.13.0", "abababababab",  # provenance
        "350 ms to the first answer", "Headroom:", "1 of 20 layers in float", "The 16 costliest of 20",
    ):  # fmt: skip
        assert text in page, text


def test_other_classes_of_machines_are_a_table() -> None:
    material = make_material("usual")
    chosen = material.evidence.select
    machine = not_none(material.evidence.benchmark.machine).model_copy(update={"cpu": "Edge <CPU>"})
    edge = OnHost(name="edge", host=HostClass(cpu="Edge"), machine=machine, choices=chosen.choices)
    chosen.elsewhere = [
        edge.model_copy(update={"winners": [chosen.winners[0].model_copy(update={"p50_ms": 4.56})]}),
        edge.model_copy(update={"name": "small", "reason": "no variant is within the budget there"}),
    ]
    page = render(material)
    assert "<small>Edge &lt;CPU&gt;</small>" in page
    assert f"<td>{chosen.winners[0].variant} on cpu</td>" in page
    assert "4.56 ms" in page
    assert "no variant is within the budget there" in page
    assert host_metrics(material.evidence).keys() == {"host/edge/p50_ms", "host/edge/speedup"}
    assert "host.small" not in version_tags(material.evidence)


def test_equal_reports_give_equal_bytes() -> None:
    assert render(make_material("toy", 5)) == render(make_material("toy", 5))


def test_a_comparison_states_what_changed(browser: Any, pages: Path) -> None:
    opened = open_page(browser, pages / "compared.html")
    table = opened.page.inner_text("#differences")
    assert re.search(r"median latency at b1\s+0.265 ms\s+0.371 ms\s+\+40.0%", table)
    assert opened.page.locator("#tradeoff .side").count() == 2
    left, right = (opened.page.locator("#tradeoff .side").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] == right["y"]


def test_the_plotting_library_is_the_one_of_vl_convert() -> None:
    import vl_convert

    assert (ROOT / "registry" / "report" / "vega.js").read_text() == vl_convert.javascript_bundle()  # type: ignore[call-arg]


def test_long_axes_have_few_round_ticks() -> None:
    assert tradeoff._ticks(0.45, 1.9) == [0.5, 0.6, 0.8, 1.0, 1.2, 1.5]
    assert tradeoff._ticks(0.9, 1.1) == [0.9, 0.95, 1.0, 1.05, 1.1]
    assert len(tradeoff._ticks(0.0004, 900)) <= 8


def test_losses_that_are_all_zero_do_not_hide_each_other() -> None:
    chart = Sections(MATERIALS["forty"]).tradeoff
    assert chart is not None
    heights = [value["y"] for value in chart.spec["data"]["values"]]
    assert len(set(heights)) == len(heights)


def test_missing_reports_are_named(tmp_path: Path) -> None:
    save(MATERIALS["usual"].evidence.export, tmp_path / "export" / "report.json")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "report.json").write_text("{")
    sections = Sections(read_material("usual", in_build(tmp_path), tmp_path / "samples.parquet"))
    assert sections.headline == "Not finished"
    text = " ".join(sections.sentences)
    assert "verify, optimize" in text
    assert "run `dvc repro`" in text
    assert "train: the report cannot be read" in text


def test_a_chosen_variant_without_the_benchmark_report_is_still_listed() -> None:
    evidence = MATERIALS["usual"].evidence
    bare = evidence.model_copy(
        update={"benchmark": REPORTS["benchmark"](stage="benchmark", model="x", status="failed")}
    )
    rows = variant_rows(bare)
    assert rows[0].name == "variant-1"
    assert rows[0].state == "chosen"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the reports of the model `usual`, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    write_reports(MATERIALS["usual"], tmp_path / "build" / "usual")
    return tmp_path / "build"


def write_reports(material: Material, folder: Path) -> None:
    for stage, path in in_build(folder).items():
        save(report_of(material, stage), path)


def report_of(material: Material, stage: str) -> Report:
    report: Report | None = material.published if stage == "publish" else getattr(material.evidence, stage)
    assert report is not None
    return report


def test_the_command_writes_the_page_of_the_checkout(build: Path, onward: Command) -> None:
    code, out, err = onward("report", "usual")
    assert (code, out.strip(), err) == (0, "report-usual.html", "")
    written = Path("report-usual.html").read_text()
    assert "Released: variant-1 on cpu" in written
    code, out, _ = onward("report", "usual", "-o", "here.html", "--json")
    assert json.loads(out)["file"].endswith("here.html")
    assert Path("here.html").read_text() == written
    code, _, err = onward("report", "usaul")
    assert code == 2
    assert "there are no reports of 'usaul'" in err
    assert "did you mean 'usual'?" in err
    assert onward("report", "usual", "usual")[0] == 2
    assert onward("report", "usual", "--compare")[0] == 2
    assert onward("report", "../usual")[0] == 2
    assert onward("report", "usual", "-o", ".")[0] == 2


def test_the_variants_fit_into_80_columns(build: Path, onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    code, out, err = onward("variants", "usual")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    rows = variant_rows(MATERIALS["usual"].evidence)
    assert lines[0].split() == ["variant", "x", "plain", "quality", "size", "budget", "used"]
    assert lines[lines.index(LONG) + 1].split() == ["1.79", "±8%", "0.9692", "880", "kB", "12", "%"]
    assert all(len(line) <= 80 for line in lines if line != LONG)
    joined = " ".join(out.split())
    assert all(row.name in lines or any(line.startswith(f"{row.name} ") for line in lines) for row in rows)
    assert all(f"{row.state}: {row.reason}" in joined for row in rows)
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = onward("variants", "usual")
    assert "left out to fit 40 columns" in out
    assert LONG in out
    _, out, _ = onward("variants", "usual", "--json")
    found = {one["variant"]: one for one in json.loads(out)}
    assert found["variant-1"]["state"] == "chosen"
    assert found["variant-1"]["size_bytes"] == 890_000
    assert found["variant-1"]["ratio"]["value"] == pytest.approx(0.53)
    assert found["odd"]["state"] == "failed"
    assert found["never"]["ratio"] is None


@pytest.mark.parametrize("stage", ["select", "benchmark"])
def test_inspect_shows_the_variants_of_a_report(build: Path, onward: Command, stage: str) -> None:
    path = build / "usual" / stage / "report.json"
    _, out, _ = onward("inspect", str(path))
    assert out.startswith(f"{stage} of usual: passed")
    assert "chosen: the fastest within the budget" in out
    alone = build.parent / "alone.json"
    path.rename(alone)
    code, out, _ = onward("inspect", str(alone))
    assert code == 0
    assert "variant-1 " in out
    _, out, _ = onward("inspect", str(build / "usual" / "verify" / "report.json"))
    assert "variant-1" not in out


def test_the_command_finds_the_evidence_of_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    for scale in (1, 2):
        version = add_candidate(store, "cnn", scale)
        material = make_material("cnn", 3, scale=scale)
        run_id = recorded_run(store, version)
        for stage in REPORTS:
            report = report_of(material, stage)
            store._client.log_text(run_id, report.model_dump_json(), f"reports/{stage}.json")
    promotion.promote("cnn", "staging", 2, reason="because")
    code, out, err = onward("report", "--compare", "cnn@staging", "cnn/1", "--json")
    assert (code, err) == (0, "")
    page = Path("report-cnn@staging-cnn-1.html").read_text()
    assert json.loads(out)["bytes"] == len(page.encode())
    assert "When it was deployed to staging" in page
    assert "-50.0%" in page
    code, out, _ = onward("variants", "cnn/2")
    assert "variant-1" in out
    assert onward("report", "cnn/9")[0] == 2
    assert onward("report", "cnn@nowhere")[0] == 2


def recorded_run(store: Store, version: int) -> str:
    candidate = store.candidate("cnn", version)
    assert candidate is not None
    return str(candidate.evidence["run_id"])


def test_a_version_without_reports_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    add_candidate(store, "cnn")
    code, _, err = onward("report", "cnn/1")
    assert code == 1
    assert "has no reports" in err


def test_ties_need_overlapping_intervals() -> None:
    assert overlap(Ratio(value=0.5, low=0.4, high=0.6), Ratio(value=0.7, low=0.6, high=0.8))
    assert not overlap(Ratio(value=0.5, low=0.4, high=0.59), Ratio(value=0.7, low=0.6, high=0.8))
    assert not Choice(variant="a", runtime="cpu", chosen=False, reason="x").tied


def test_reports_of_the_factory_survive_a_round_trip(tmp_path: Path) -> None:
    write_reports(MATERIALS["usual"], tmp_path)
    assert load(REPORTS["select"], tmp_path / "select" / "report.json") == MATERIALS["usual"].evidence.select
