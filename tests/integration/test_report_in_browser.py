"""The report page in a real browser, as wide as a laptop and as a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator
from selenium.webdriver.common.by import By
from shared_servers import BROWSER_MARKS, marks

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.runs.checkpoints import open_checkpoints
from gems.runs.folder import write_run
from gems.runs.record import ModelRecord, run_record
from gems.runs.threads import run_thread

pytestmark = [*marks("service"), *BROWSER_MARKS]  # one worker has the browser


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
