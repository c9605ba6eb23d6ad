"""Which failures are worth another try, and what becomes of those that are not."""

from __future__ import annotations

import ast
from typing import Any, Final, Literal, TypeAlias

from langgraph.errors import NodeError
from langgraph.types import Command, RetryPolicy

from gems.errors import BackendError, InputError, is_passing_status
from gems.graph.state import GemsState
from gems.nodes.meter import settle
from gems.secrets import one_line

__all__ = ["RETRY", "Goto", "is_backend_failure", "report_failure", "retry_on", "work_without"]

Goto: TypeAlias = Command[Literal["planner", "generator", "store_memory", "__end__"]]
"""Where an error handler sends the run."""

_TRANSPORT_ERRORS: Final = frozenset({"APIConnectionError", "APITimeoutError", "TransportError", "OutOfMemoryError"})
"""By name, since the packages that define them (openai, anthropic, httpx, torch) need not be installed or imported."""


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def retry_on(error: Exception) -> bool:
    """Whether trying again may help: passing faults of a backend do, bad input and programming errors never."""
    if isinstance(error, InputError):
        return False
    if isinstance(error, BackendError):
        return error.retryable
    status = _status(error)
    if status is not None:
        return is_passing_status(status)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return any(base.__name__ in _TRANSPORT_ERRORS for base in type(error).__mro__)


def is_backend_failure(error: BaseException) -> bool:
    """Whether a model or server is at fault, rather than the user's input or this program."""
    if isinstance(error, InputError) or not isinstance(error, Exception):
        return False
    return isinstance(error, BackendError) or _status(error) is not None or retry_on(error)


RETRY: Final = RetryPolicy(
    initial_interval=0.5, backoff_factor=2.0, max_interval=8.0, max_attempts=3, retry_on=retry_on
)


def describe(error: BaseException, node: str) -> str:
    """One line for ``errors``."""
    return f"{node}: {one_line(error, 500) or type(error).__name__}"


def work_without(state: GemsState, error: NodeError, goto: str, *, whatever: bool = False, **update: Any) -> Goto:
    """What an error handler returns when the run can do without the node: any fault but bad input is noted down.

    ``whatever``: bad input too, where it came up on the way, and a run is not to lose its result by it.
    """
    fault, usage = _fault(error), settle(state, error.node)
    if not isinstance(fault, Exception) or (isinstance(fault, InputError) and not whatever):
        raise fault
    given = {"errors": [describe(fault, error.node)], "usage": usage, **update}
    return Command(update=given, goto=goto)  # type: ignore[arg-type]


def report_failure(state: GemsState, error: NodeError, goto: str, **update: Any) -> Goto:
    """What a node's error handler returns after a backend gave up: the error's line, the given keys, where to go on.

    Errors that are not a backend's (bad input, a bug) are raised again: they end the run with their own message.
    """
    fault = _fault(error)
    if not is_backend_failure(fault):
        settle(state, error.node)
        raise fault
    return work_without(state, error, goto, **update)


def _fault(error: NodeError) -> BaseException:
    """The failure itself. In a run that was killed and resumed, the checkpoint holds no more of it than its repr."""
    fault: object = error.error
    if isinstance(fault, BaseException):
        return fault
    text = str(fault)
    kind, _, arguments = text.partition("(")
    try:
        message = str(ast.literal_eval(arguments.removesuffix(")")))
    except (ValueError, SyntaxError):
        message = text
    return InputError(message) if kind == InputError.__name__ else BackendError(message, retryable=False)
