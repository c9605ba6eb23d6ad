"""``gems generate --service`` with a service of somebody else's: it writes nowhere else, and does nothing here."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from forked import gems_here
from selenium.webdriver.common.by import By
from shared_servers import in_browser, needs

_PNG = b"\x89PNG\r\n\x1a\n and so on"
_RUN: dict[str, Any] = {
    "id": "run-abc",
    "thread": "",
    "prompt": "two red cars",
    "status": "done",
    "outcome": "solved",
    "score": 1.0,
    "best": 0,
    "image": {"url": "/image"},
    "report": "/report",
    "attempts": [{"round": 1, "seed": 3}],
    "usage": {"images": 1, "chat_calls": 1, "seconds": 1.0},
    "requirements": [],
    "skills": [],
    "errors": [],
    "started_at": 1.0,
    "ended_at": 2.0,
    "error": None,
    "error_kind": None,
}


class _Handler(BaseHTTPRequestHandler):
    events: list[Any]
    """What is sent before the run's end."""
    end: dict[str, Any]
    begin: bytes
    files: dict[str, bytes]
    headers_sent: dict[str, str]
    status: int
    posted: list[str]
    """Where something was posted."""
    interrupts: bool
    """Whether Ctrl-C is pressed while the service begins a run."""
    keys: list[str | None]
    """The keys that were sent."""
    got: list[str]
    """What was fetched."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.posted.append(self.path)
        if self.interrupts and self.path == "/v1/runs":
            os.kill(os.getpid(), signal.SIGINT)
        self._send(self.begin)

    def do_GET(self) -> None:
        self.got.append(self.path)
        if not self.path.endswith("/events"):
            return self._send(self.files.get(self.path, b"<script>alert(1)</script>"))
        parts = [("x", event) for event in self.events] + [("run", self.end)]
        text = "".join(f"event: {name}\ndata: {json.dumps(content)}\n\n" for name, content in parts)
        return self._send(text.encode(), "text/event-stream")

    def _send(self, body: bytes, kind: str = "application/json") -> None:
        self.keys.append(self.headers["authorization"])
        self.send_response(self.status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **self.headers_sent}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has had enough
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    _Handler.events, _Handler.end, _Handler.begin, _Handler.headers_sent = [], _RUN, json.dumps(_RUN).encode(), {}
    _Handler.files, _Handler.status, _Handler.keys = {"/image": _PNG}, 200, []
    _Handler.posted, _Handler.interrupts, _Handler.got = [], False, []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _generate(service: str, folder: Path, *options: str) -> Any:
    return gems_here(
        "generate", "two red cars", "--service", service, "--out", folder / "out", *options, home=folder / "home"
    )


def _written(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_ctrl_c_while_a_run_is_begun_cancels_it(service: str, tmp_path: Path) -> None:
    _Handler.interrupts = True
    _Handler.end = {**_RUN, "status": "cancelled", "outcome": "cancelled", "image": None, "report": None}
    result = _generate(service, tmp_path)
    assert (result.returncode, _Handler.posted) == (130, ["/v1/runs", "/v1/runs/run-abc/cancel"]), result.stderr


def test_a_report_of_others_stays_in_a_frame_without_permissions(service: str, tmp_path: Path) -> None:
    _Handler.files["/report"] = b'<p>"&amp;</p></iframe><script>alert(1)</script>'
    result = _generate(service, tmp_path)
    assert result.returncode == 0, result.stderr
    assert _written(tmp_path) == {"out/run-abc/best.png", "out/run-abc/report.html"}
    report = (tmp_path / "out" / "run-abc" / "report.html").read_text()
    assert "<iframe sandbox style=" in report
    assert "<script" not in report
    assert report.count("</iframe>") == 1


@needs("service")  # one worker has the browser
@in_browser
def test_a_report_of_others_leads_nowhere_and_fetches_nothing(chromium: Any, service: str, tmp_path: Path) -> None:
    _Handler.files["/report"] = f"""<!doctype html><html><head><base href="{service}/">
        <meta http-equiv="refresh" content="0;url={service}/refreshed"><link rel="stylesheet" href="{service}/style">
        <script>document.title = "run"; parent.location = "{service}/script"</script></head>
        <body onload="top.location = '{service}/onload'"><h1>Two red cars</h1><img src="{service}/pixel">
        <a href="{service}/here">a</a> <a href="{service}/top" target="_top">b</a>
        <iframe src="{service}/inner"></iframe>
        <form action="{service}/form"><button>c</button></form></body></html>""".encode()
    assert _generate(service, tmp_path).returncode == 0
    _Handler.got.clear()
    page = (tmp_path / "out" / "run-abc" / "report.html").as_uri()
    chromium.get(page)
    chromium.switch_to.frame(0)
    assert chromium.find_element(By.TAG_NAME, "h1").text == "Two red cars"
    for selector in ("a", "a[target]", "button"):
        chromium.find_element(By.CSS_SELECTOR, selector).click()
        time.sleep(0.5)  # a page that leads somewhere is there by then
        assert _Handler.got == [], selector
        chromium.get(page)
        chromium.switch_to.frame(0)
    chromium.switch_to.default_content()
    chromium.get_log("browser")  # what the browser has refused
    assert (chromium.current_url, chromium.title) == (page, "GEMS report")


@pytest.mark.parametrize("name", ["..", "../evil", "{}/evil", ".", "", "run-other", 5, None])
def test_a_run_is_written_under_its_first_name_alone(name: Any, service: str, tmp_path: Path) -> None:
    place = name.format(tmp_path) if isinstance(name, str) else name
    _Handler.end = {**_RUN, "id": place}
    result = _generate(service, tmp_path)
    assert (result.returncode, _written(tmp_path)) == (3, set()), result.stderr
    _Handler.begin = json.dumps({**_RUN, "id": place}).encode()
    result = _generate(service, tmp_path)
    assert result.returncode == (0 if name == "run-other" else 3), result.stderr
    assert {file.split("/")[1] for file in _written(tmp_path)} <= {"run-other"}


@pytest.mark.parametrize("is_link", [False, True])
def test_no_folder_that_is_there_is_written_to(is_link: bool, service: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folder = tmp_path / "out" / "run-abc"
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "other") if is_link else folder.mkdir()
    result = _generate(service, tmp_path)
    assert (result.returncode, _written(tmp_path)) == (3, set()), result.stderr
    assert "there already" in result.stderr


@pytest.mark.parametrize(
    "change",
    [
        *[{"image": value} for value in ("x", 5, [], {"url": 5}, {"url": "/\x00"}, {"url": "//e.org/x"})],
        *[
            {"image": {"url": value}}
            for value in ("http://e.org/x", "/\\e.org/x", "/é", "/a b", "@e.org/", "/\n", "/report")
        ],
        *[{"report": value} for value in (5, {}, "//e.org/x", "file:///etc/passwd")],
        *[{"started_at": value} for value in (1e20, -1e20, "x", {})],
        *[{"attempts": value} for value in ({"a": 1}, "x", [1], [{}], 5)],
        *[{"outcome": value} for value in ([], "odd", 5)],
        *[{"requirements": value} for value in ("x", [1], [{"question": 5}])],
        *[{"usage": value} for value in (None, [], {"images": "x"})],
        *[{"errors": value} for value in ("x", [5])],
        *[{"outcome": None, "error": value} for value in (["x"], 5)],
    ],
    ids=str,
)
def test_what_is_no_run_is_one_error(change: dict[str, Any], service: str, tmp_path: Path) -> None:
    _Handler.end = {**_RUN, **change}
    result = _generate(service, tmp_path, "--quiet")
    assert (result.returncode, len(result.stderr.splitlines())) == (3, 1), result.stderr
    assert _written(tmp_path) == set()


_MARKUP = "[/dim][/][link=http://e.org]x[/link]\x1b]0;title\x07\u202e"


@pytest.mark.parametrize(
    "event",
    [
        *["x", 5, [], {}, {"event": []}, {"event": "verdict", "answer": "odd"}],
        {"event": "prompt", "round": _MARKUP, "strategy": _MARKUP, "prompt": _MARKUP},
        {"event": "memories", "count": _MARKUP},
        {"event": "attempt", "passed": _MARKUP, "total": _MARKUP, "score": 1.0},
        {"event": "step", "step": {}, "steps": "x"},
        {"event": "skills", "checks": [], "skills": [_MARKUP]},
    ],
    ids=str,
)
def test_an_event_is_text_or_one_error(event: Any, service: str, tmp_path: Path) -> None:
    _Handler.events = [event]
    result = _generate(service, tmp_path)
    assert result.returncode in (0, 3), result.stderr
    assert "Traceback" not in result.stderr
    assert not {"\x1b", "\x07", "\u202e"} & {*result.stderr}
    if _MARKUP in str(event.values() if isinstance(event, dict) else "") and result.returncode == 0:
        assert "[link=http://e.org]" in result.stderr


@pytest.mark.parametrize("answer", ["begin", "events", "image", "packed"])
def test_no_answer_fills_the_memory(answer: str, service: str, tmp_path: Path) -> None:
    much = b" " * (65 * 2**20)
    if answer == "begin":
        _Handler.begin = much
    elif answer == "events":
        _Handler.events = [much.decode()]
    elif answer == "image":
        _Handler.files = {"/image": _PNG + much}
    else:
        _Handler.begin, _Handler.headers_sent = gzip.compress(json.dumps(_RUN).encode()), {"content-encoding": "gzip"}
    result = _generate(service, tmp_path)
    assert (result.returncode, _written(tmp_path)) == (3, set()), result.stderr
    assert ("packs" if answer == "packed" else "more than 64 MB") in result.stderr


@pytest.mark.parametrize("codec", ["bz2", "hex", "idna", "punycode", "undefined"])
def test_no_codec_of_a_header_is_used(codec: str, service: str, tmp_path: Path) -> None:
    _Handler.headers_sent = {"content-type": f"text/event-stream; charset={codec}"}
    result = _generate(service, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999", "http://a\tb", "http://\x1b[31m"])
def test_an_address_that_is_none_is_bad_input(address: str, tmp_path: Path) -> None:
    result = _generate(address, tmp_path)
    assert result.returncode in (2, 3), result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_follows_no_redirect(status: int, service: str, tmp_path: Path) -> None:
    place = service.replace("127.0.0.1", "localhost")
    _Handler.status, _Handler.headers_sent = status, {"location": f"{place}/v1/runs"}
    options = ("generate", "two red cars", "--service", service, "--out", tmp_path)
    result = gems_here(*options, home=tmp_path, GEMS_API_KEY="sk-of-a-test")
    assert (result.returncode, _Handler.keys) == (3, ["Bearer sk-of-a-test"]), result.stderr
    assert "sk-of-a-test" not in result.stderr
