"""What the service's logs show of an exception: where it happened, and no value of any variable."""

from __future__ import annotations

import json
import os
import sys

import pytest
from forked import run

SCRIPT = """
import logging, sys, threading
import structlog
from gems.serve.server import write_logs

write_logs("info", as_json=sys.argv[1] == "json")

def fail(prompt, settings):
    secret_note = f"{prompt} and more"
    raise OSError(28, "No space left on device")

def fail_in_structlog():
    try:
        fail("PROMPT OF A USER", {"api_key": "KEY OF A USER"})
    except OSError:
        structlog.get_logger("gems.serve").exception("put_off", run="run-1")

def fail_in_logging():
    try:
        fail("PROMPT OF A USER", {"api_key": "KEY OF A USER"})
    except OSError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")

fail_in_structlog()
fail_in_logging()
for target in (fail_in_structlog, fail_in_logging, lambda: fail("PROMPT OF A USER", {})):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
try:
    raise ValueError("the server said: wrong key sk-of-the-operator")
except ValueError:
    structlog.get_logger("gems.serve").exception("internal_error")
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_traceback_shows_a_variable(log_format: str) -> None:
    environment = {**os.environ, "OPENAI_API_KEY": "sk-of-the-operator"}
    log = run([sys.executable, "-c", SCRIPT, log_format], env=environment).stderr
    assert "OF A USER" not in log
    assert "sk-of-the-operator" not in log
    assert "the server said: wrong key [key]" in log
    assert log.count("No space left on device") >= 5
    assert "fail_in_structlog" in log, "the traceback names the functions"
    if log_format == "json":
        lines = [json.loads(line) for line in log.splitlines()]
        assert [line["event"] for line in lines] == [
            *("put_off", "Exception in ASGI application", "put_off", "Exception in ASGI application"),
            *("thread_ended", "internal_error"),
        ]
