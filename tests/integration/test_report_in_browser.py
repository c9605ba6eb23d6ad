"""The report page in a real browser, as wide as a laptop and as a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.runs.checkpoints import open_checkpoints
from gems.runs.folder import write_run
from gems.runs.record import ModelRecord, run_record
from gems.runs.threads import run_thread

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("report-page"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of three rounds: real verdicts of the pocket model on flat colours."""
    from datetime import UTC, datetime

    base = tmp_path_factory.mktemp("report")
    context = GemsContext(memory=False, seed=1, max_rounds=3)
    images = ImageStore(base / "images")
    prompt = "seven wooden koalas chasing a sparkling giraffe, and three guitars"
    with open_checkpoints(base / "c.sqlite") as saver:
        graph = build_graph(checkpointer=saver, generator=PaintGenerator(), images=images)
        values = run_thread(graph, "t", prompt, context)
    models = {role: ModelRecord("pocket", "f" * 64) for role in ("mllm", "generator")}
    record = run_record(values, context, models, "t", datetime.now(UTC))
    return write_run(base / "out", record, images).report


@pytest.fixture(params=[1280, 390])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        # A window cannot be as narrow as a phone, but an emulated screen can.
        metrics = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": request.param < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield driver
    finally:
        driver.quit()


def test_it_shows_everything_and_fits(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("seven wooden koalas")
    images = browser.find_elements(By.TAG_NAME, "img")
    for image in images:
        browser.execute_script("arguments[0].scrollIntoView()", image)
    assert len(images) == 4
    assert all(browser.execute_script("return arguments[0].naturalWidth", image) > 0 for image in images)
    assert all(image.get_attribute("alt") for image in images)
    rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(rows) == 9
    assert all(len(row.find_elements(By.CSS_SELECTOR, "td.mark .chip")) == 3 for row in rows)
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
