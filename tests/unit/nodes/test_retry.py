from __future__ import annotations

from typing import Any

import pytest
from langgraph.errors import NodeError

from gems.errors import BackendError, InputError, MalformedAnswerError
from gems.graph.state import GemsState, Usage
from gems.nodes.retry import is_backend_failure, report_failure, retry_on, work_without


class StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code


class APIConnectionError(Exception):
    """Has the name that the providers' packages use."""


@pytest.mark.parametrize(
    ("error", "again", "backend"),
    [
        (InputError("bad"), False, False),
        (BackendError("busy"), True, True),
        (BackendError("no weights", retryable=False), False, True),
        (MalformedAnswerError("asked three times"), False, True),
        (StatusError(429), True, True),
        (StatusError(503), True, True),
        (StatusError(401), False, True),
        (StatusError(400), False, True),
        (ConnectionResetError(), True, True),
        (TimeoutError(), True, True),
        (APIConnectionError(), True, True),
        (TypeError("a bug"), False, False),
        (KeyError("a bug"), False, False),
    ],
)
def test_which_errors_are_retried_and_count_as_backend_failures(error: Exception, again: bool, backend: bool) -> None:
    assert retry_on(error) is again
    assert is_backend_failure(error) is backend


STATE = GemsState(run_id="r")


def node_error(error: Any) -> NodeError:
    return NodeError(node="planner", error=error)


def test_a_backends_failure_is_noted_and_the_run_goes_on() -> None:
    command: Any = report_failure(STATE, node_error(BackendError("server\ndown")), "generator", draft="x")
    assert command.goto == "generator"
    assert command.update == {"errors": ["planner: server down"], "usage": Usage(), "draft": "x"}


@pytest.mark.parametrize("error", [InputError("unknown word"), TypeError("a bug")])
def test_bad_input_and_bugs_are_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        report_failure(STATE, node_error(error), "generator")


def test_failures_of_optional_parts_are_noted_whatever_the_error() -> None:
    command: Any = work_without(STATE, node_error(TypeError("a bug")), "planner", memories=[])
    assert command.update == {"errors": ["planner: a bug"], "usage": Usage(), "memories": []}
    with pytest.raises(InputError):
        work_without(STATE, node_error(InputError("bad embedder")), "planner")


@pytest.mark.parametrize("error", [InputError("unknown word"), BackendError("server down"), KeyError("a bug")])
def test_a_run_that_goes_on_does_the_failed_node_again(error: Exception) -> None:
    """Only the text of the failure is left by then, and its cause may be mended."""
    for handler in (report_failure, work_without):
        command: Any = handler(STATE, node_error(repr(error)), "generator", draft="x")
        assert (command.goto, command.update) == ("planner", {"usage": Usage()})
