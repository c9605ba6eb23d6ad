"""Third-party clients of the service: OpenAI's, LangServe's, schemathesis and a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from langchain_core._api import LangChainBetaWarning
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image
from servers.gems_service import ServiceProcess
from shared_servers import in_browser, marks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic warns about LangServe's models
    from langserve import RemoteRunnable

pytestmark = marks("service")

PROMPT = "three blue cars to the left of a striped elephant"


# --- OpenAI's client ------------------------------------------------------------------------------------------------


@pytest.fixture
def openai(service: ServiceProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def test_openai_draws_an_image(openai: OpenAI) -> None:
    answer = openai.images.generate(model="gpt-image-1", prompt=PROMPT, extra_body={"seed": 4})
    assert answer.data is not None
    [image] = answer.data
    png = base64.b64decode(str(image.b64_json))
    assert Image.open(io.BytesIO(png)).size == (512, 512)
    assert "blue cars" in str(image.revised_prompt)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    again = openai.images.generate(model="gpt-image-1", prompt=PROMPT, extra_body={"seed": 4})
    assert again.data is not None
    assert base64.b64decode(str(again.data[0].b64_json)) == png, "a seed is honoured"


def test_openai_draws_several_images_as_urls_in_another_size(openai: OpenAI) -> None:
    answer = openai.images.generate(
        prompt="two red cars", n=2, size="1024x1024", response_format="url", output_format="webp", quality="high"
    )
    assert answer.data is not None
    assert len({image.url for image in answer.data}) == 2
    for image in answer.data:
        picture = Image.open(io.BytesIO(httpx.get(str(image.url)).content))
        assert (picture.format, picture.size) == ("WEBP", (1024, 1024))
        assert image.b64_json is None
    assert (answer.size, answer.output_format) == ("1024x1024", "webp")
    small = openai.images.generate(prompt="two red cars", size="256x128", output_format="jpeg")
    assert small.data is not None
    picture = Image.open(io.BytesIO(base64.b64decode(str(small.data[0].b64_json))))
    assert (picture.format, picture.size) == ("JPEG", (128, 128))


def test_openai_streams_attempts(openai: OpenAI) -> None:
    stream = openai.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 4})
    events: list[Any] = list(stream)
    assert [e.type for e in events[:-1]] == ["image_generation.partial_image"] * (len(events) - 1)
    assert [e.partial_image_index for e in events[:-1]] == list(range(len(events) - 1))
    assert events[-1].type == "image_generation.completed"
    assert events[-1].usage.total_tokens > 0
    for event in events:
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (512, 512)
    assert len({event.b64_json for event in events}) == len(events) > 1


def test_openai_receives_errors(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="dragon"):
        openai.images.generate(prompt="a dragon")
    with pytest.raises(NotFoundError, match="choose from: gems, gpt-image-1") as caught:
        openai.images.generate(model="dall-e-3", prompt="a red dog")
    assert caught.value.code == "model_not_found"
    with pytest.raises(Exception, match="dragon"):
        list(openai.images.generate(prompt="a dragon", stream=True))
    assert [model.id for model in openai.models.list()] == ["gems", "gpt-image-1"]


# --- LangServe's client ---------------------------------------------------------------------------------------------


@pytest.fixture
def remote(service: ServiceProcess) -> Iterator[RemoteRunnable[Any, Any]]:
    remote: RemoteRunnable[Any, Any] = RemoteRunnable(f"{service.url}/gems")
    yield remote
    remote.sync_client.close()
    asyncio.run(remote.async_client.aclose())


def test_langserve_invokes_batches_and_streams(remote: RemoteRunnable[Any, Any]) -> None:
    view = remote.invoke({"prompt": PROMPT, "context": {"seed": 4}})
    assert (view["status"], view["outcome"]) == ("done", "solved")
    views = remote.batch([{"prompt": "two red cars"}, {"prompt": "a green dog"}])
    assert [v["prompt"] for v in views] == ["two red cars", "a green dog"]
    chunks = list(remote.stream({"prompt": PROMPT, "context": {"seed": 4}}))
    assert {"prompt", "verdict", "end"} <= {event["event"] for event in chunks}
    assert chunks[-1]["event"] == "run"
    attempts_of_each = [
        [(a["prompt"], a["seed"], a["image"]["sha256"]) for a in v["attempts"]] for v in (view, chunks[-1])
    ]
    assert attempts_of_each[0] == attempts_of_each[1]


@pytest.mark.filterwarnings("ignore", category=LangChainBetaWarning)
def test_langserve_streams_events(service: ServiceProcess) -> None:
    async def go() -> list[str]:
        remote: RemoteRunnable[Any, Any] = RemoteRunnable(f"{service.url}/gems")
        names = [e["event"] async for e in remote.astream_events({"prompt": "two red cars"}, version="v2")]
        remote.sync_client.close()
        await remote.async_client.aclose()
        return names

    names = asyncio.run(go())
    assert (names[0], names[-1]) == ("on_chain_start", "on_chain_end")
    assert names.count("on_chain_stream") > 5


def test_langserve_resumes_a_review_by_thread(remote: RemoteRunnable[Any, Any]) -> None:
    review_state = remote.invoke(
        {"prompt": "two red cars", "thread_id": "mine", "context": {"seed": 3, "review": "end"}}
    )
    assert review_state["status"] == "waiting"
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        remote.invoke({"prompt": "a green dog", "thread_id": "mine"})
    more = remote.invoke({"thread_id": "mine", "resume": {"action": "reject", "comment": "too small"}})
    assert more["status"] == "waiting"
    assert len(more["attempts"]) == 2
    assert remote.invoke({"thread_id": "mine", "resume": {"action": "accept"}})["outcome"] == "accepted"
    for wrong, status in (
        ({"thread_id": "mine", "resume": {"action": "accept"}}, 409),
        ({"thread_id": "nobody", "resume": {"action": "accept"}}, 400),
        ({"prompt": "a dragon"}, 400),
        ({"prompt": "a red dog", "context": {"mllm": "openai:x"}}, 422),
        ({}, 422),
    ):
        with pytest.raises(httpx.HTTPStatusError, match=str(status)):
            remote.invoke(wrong)


def test_plain_curl_is_enough(service: ServiceProcess) -> None:
    command = ["curl", "-sS", "--fail-with-body", f"{service.url}/gems/invoke", "-H", "content-type: application/json"]
    result = subprocess.run([*command, "-d", '{"input": {"prompt": "two red cars"}}'], capture_output=True, check=True)
    assert b'"status":"done"' in result.stdout
    schema = httpx.get(f"{service.url}/gems/input_schema").json()
    assert set(schema["properties"]) == {"prompt", "resume", "thread_id", "context"}


# --- the schema -----------------------------------------------------------------------------------------------------


def test_the_service_follows_its_own_schema(service: ServiceProcess, tmp_path: Path) -> None:
    checks = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
    checks += ("response_schema_conformance", "response_headers_conformance")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
        *("--include-path-regex", r"^/(v1|healthz|readyz|metrics|artifacts|reports)"),
        *("--checks", ",".join(checks), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "3", "--generation-database", "none", "--seed", "1", "--no-color"),
    ]
    result = forked.run(command, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


# --- a browser ------------------------------------------------------------------------------------------------------


@in_browser
def test_the_page_draws_asks_and_shows_by_keyboard_alone(service: ServiceProcess, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def text(of: str) -> str:
        return str(browser.find_element(By.ID, of).text)

    def until(*words: str) -> None:
        WebDriverWait(browser, 30).until(lambda _: text("chip") in words)

    browser.get(service.url)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.find_element(By.CSS_SELECTOR, "summary").send_keys(Keys.ENTER)
    browser.find_element(By.NAME, "seed").send_keys("4")
    Select(browser.find_element(By.NAME, "review")).select_by_value("end")
    browser.find_element(By.ID, "prompt").send_keys(PROMPT + Keys.ENTER)
    until("asks you")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#requirements li.yes")) == 7
    WebDriverWait(browser, 10).until(
        lambda d: d.execute_script("return document.querySelector('#frame img')?.naturalWidth") == 512
    )
    round_count = len(browser.find_elements(By.CSS_SELECTOR, "#rounds li"))
    browser.find_element(By.ID, "words").send_keys("larger cars")
    browser.find_element(By.XPATH, "//form[@id='review']//button[text()='Try again']").send_keys(Keys.ENTER)
    WebDriverWait(browser, 30).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#rounds li")) > round_count)
    until("asks you")
    browser.find_element(By.XPATH, "//form[@id='review']//button[text()='Accept']").send_keys(Keys.ENTER)
    until("accepted")
    report = browser.find_element(By.LINK_TEXT, "Open the report").get_attribute("href")
    assert PROMPT in httpx.get(report).text
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    browser.get(f"{service.url}/#")
    WebDriverWait(browser, 10).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#past a"))
    browser.find_element(By.CSS_SELECTOR, "#past a").send_keys(Keys.ENTER)
    until("accepted")

    browser.find_element(By.ID, "prompt").send_keys("a dragon" + Keys.ENTER)
    until("failed")
    assert "dragon" in text("told")
    assert "did you mean" in text("told")
    assert "--" not in text("told"), "a visitor has no command line"


@in_browser
@pytest.mark.parametrize("browser", [1280], indirect=True)
def test_the_page_says_nothing_that_is_not_so(service: ServiceProcess, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def text(of: str) -> str:
        return str(browser.find_element(By.ID, of).text)

    with service.client() as client:
        long = {"max_rounds": 5, "patience": 5, "candidates": 4, "memory": False}
        body = {"prompt": "seven wooden koalas chasing a sparkling giraffe", "settings": long}
        *running, queued = [client.post("/v1/runs", json=body).json()["id"] for _ in range(4)]
        client.post(f"/v1/runs/{queued}/cancel")
        browser.get(f"{service.url}/#{queued}")
        WebDriverWait(browser, 30).until(lambda _: text("chip") == "stopped")
        assert text("frame") == "No image was made."
        assert "before it made an image" in text("told")
        for run in running:
            client.post(f"/v1/runs/{run}/cancel")
            service.wait_for(run)
        body["prompt"] = "six red dogs and seven green cats"  # too hard for a single image, by most seeds
        for seed in range(20):
            body["settings"] = {"max_rounds": 1, "memory": False, "seed": seed}
            best_effort = client.post("/v1/runs", json=body).json()["id"]
            if service.wait_for(best_effort)["outcome"] == "rounds":
                break
    browser.get(f"{service.url}/#{best_effort}")
    WebDriverWait(browser, 30).until(lambda _: text("chip") == "best effort")
    row = browser.find_element(By.CSS_SELECTOR, f"#past a[href='#{best_effort}'] .chip")
    assert "yes" not in str(row.get_attribute("class")).split(), "no green for what did not pass"
    browser.get(f"{service.url}/#run-unknown")
    WebDriverWait(browser, 30).until(lambda _: text("problem"))
    assert not browser.find_element(By.ID, "stage").is_displayed(), "no other run's image stands there"
    [entry] = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert "404" in entry["message"]


@in_browser
@pytest.mark.parametrize("browser", [1280], indirect=True)
def test_langserves_playground_draws(service: ServiceProcess, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{service.url}/gems/playground/")
    [prompt, *_] = WebDriverWait(browser, 20).until(lambda d: d.find_elements(By.CSS_SELECTOR, "textarea"))
    prompt.send_keys("two red cars")
    browser.find_element(By.XPATH, "//button[contains(., 'Start')]").click()
    WebDriverWait(browser, 30).until(lambda d: '"outcome": "solved"' in d.find_element(By.TAG_NAME, "body").text)
