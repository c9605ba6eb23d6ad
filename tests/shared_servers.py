"""Servers that a whole session shares. Each starts when a test first asks for it, once per worker.

The tests of a costly server join an ``xdist_group`` of its name (``marks``, ``needs``), so that it starts only once.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from servers.gems_service import ServiceProcess
    from servers.langgraph_dev import Studio

__all__ = [
    "BROWSER_MARKS",
    "browser",
    "chat_server",
    "chromium",
    "database",
    "image_server",
    "in_browser",
    "marks",
    "needs",
    "postgres",
    "service",
    "studio",
    "trusting_studio",
]

Test = TypeVar("Test", bound=Callable[..., Any])


def marks(group: str) -> list[pytest.MarkDecorator]:
    """The marks of tests that use a single shared server: they are slow and run in one worker."""
    extra_marks = [pytest.mark.postgres] if group == "postgres" else []
    return [*extra_marks, pytest.mark.slow, pytest.mark.xdist_group(group)]


def needs(group: str) -> Callable[[Test], Test]:
    """A decorator that gives these marks to one test."""

    def mark(test: Test) -> Test:
        for each in marks(group):
            test = each(test)
        return test

    return mark


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
BROWSER_MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
]


def in_browser(test: Test) -> Test:
    """A decorator that gives these marks to one test."""
    for mark in BROWSER_MARKS:
        test = mark(test)
    return test


@pytest.fixture(scope="session")
def chat_server() -> Iterator[str]:
    """The address of ``servers/chat_server.py``. ``chatting.ChatEndpoint`` creates unique endpoints on it."""
    from chatting import serving

    with serving() as address:
        yield address


@pytest.fixture(scope="session")
def image_server() -> Iterator[str]:
    """The address of ``servers/image_server.py``."""
    from chatting import serving

    with serving("image_server.py") as address:
        yield address


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """``gems serve`` without memory and without keys. Group ``service``."""
    from servers.gems_service import serving

    names = ("--served-model-name", "gems", "--served-model-name", "gpt-image-1")
    with serving(tmp_path_factory.mktemp("service") / "home", "--no-memory", "--grace", "0", *names) as served:
        yield served


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """``langgraph dev``, whose operator has set the user. Group ``studio``."""
    from servers.langgraph_dev import langgraph_dev

    folder = tmp_path_factory.mktemp("studio")
    settings = folder / "settings.toml"
    settings.write_text('user = "ann"\n')
    with langgraph_dev(folder, GEMS_SETTINGS=str(settings)) as running:
        yield running


@pytest.fixture(scope="session")
def trusting_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """``langgraph dev``, whose clients may set everything. Group ``studio``."""
    from servers.langgraph_dev import langgraph_dev

    with langgraph_dev(tmp_path_factory.mktemp("trusting"), GEMS_TRUST_CLIENTS="1") as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server. Group ``postgres``."""
    from servers.postgres import serving_postgres

    with serving_postgres() as address:
        yield address


@pytest.fixture
def database(postgres: str) -> str:
    """The address of an empty database for one test. Group ``postgres``."""
    import psycopg

    name = f"d{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return postgres.replace("/postgres", f"/{name}")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser. Group ``service``."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(params=[1280, 390])
def browser(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    """A new tab, as wide as a laptop or a phone, in which no error may occur."""
    [old_tab] = chromium.window_handles
    chromium.switch_to.new_window("tab")
    new_tab = chromium.current_window_handle
    chromium.switch_to.window(old_tab)
    chromium.close()
    chromium.switch_to.window(new_tab)
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    # A window cannot be as narrow as a phone, but an emulated screen can.
    metrics = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": request.param < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.get_log("browser")  # empties it
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
