"""Which failures are tried again, and how a run continues after those that are not."""

from __future__ import annotations

from copy import copy
from typing import Any, Final, Literal, TypeAlias

from langgraph.errors import NodeError
from langgraph.types import Command, RetryPolicy, Send

from gems.errors import BackendError, InputError
from gems.graph.state import GemsState
from gems.models.failures import is_of_account, is_passing, status_of
from gems.nodes.meter import hand_over, settle
from gems.secrets import one_line

__all__ = [
    "RETRY",
    "Goto",
    "describe",
    "is_backend_failure",
    "is_locked_out",
    "report_failure",
    "retry_on",
    "work_without",
]

Goto: TypeAlias = Command[Literal["planner", "cross_check", "generator", "verifier", "store_memory", "__end__"]]
"""Where an error handler sends the run."""


def retry_on(error: Exception) -> bool:
    """Whether another try may help. It may after temporary backend failures, never after bad input or a bug."""
    if isinstance(error, InputError):
        return False
    if isinstance(error, BackendError):
        return error.retryable
    return is_passing(error)


def is_backend_failure(error: BaseException) -> bool:
    """Whether a model or server failed, rather than the user's input or this program."""
    if isinstance(error, InputError) or not isinstance(error, Exception):
        return False
    return isinstance(error, BackendError) or status_of(error) is not None


def is_locked_out(error: NodeError) -> bool:
    """Whether a chat model's key or account is refused, so that the run's next call would be refused as well."""
    return isinstance(error.error, BaseException) and is_of_account(error.error)


RETRY: Final = RetryPolicy(
    initial_interval=0.5, backoff_factor=2.0, max_interval=8.0, max_attempts=3, retry_on=retry_on
)


def describe(error: BaseException, node: str) -> str:
    """One line for ``errors``."""
    return f"{node}: {one_line(error, 500) or type(error).__name__}"


def work_without(
    state: GemsState, error: NodeError, goto: str, *, include_input_errors: bool = False, **update: Any
) -> Goto:
    """The command of an error handler whose node the run can do without: note the failure and continue.

    A run that goes on after a failure or a kill does the node again: of the failure, only the ``repr`` is left.

    Args:
        state: The state at the node.
        error: The node's failure.
        goto: The node to continue at.
        include_input_errors: Also tolerate an InputError, so that a late failure never costs the run its result.
        **update: Further keys of the state to set.

    Raises:
        InputError: The failure is one, and is not tolerated.
    """
    failure: object = error.error
    if not isinstance(failure, BaseException):
        return _again(state, error.node)
    if not isinstance(failure, Exception) or (isinstance(failure, InputError) and not include_input_errors):
        raise _anew(failure) from failure  # what the node has spent stays unsettled, for whoever catches this
    changes = {"errors": [describe(failure, error.node)], "usage": settle(state, error.node), **update}
    return Command(update=changes, goto=goto)  # type: ignore[arg-type]


def report_failure(state: GemsState, error: NodeError, goto: str, **update: Any) -> Goto:
    """The command of an error handler after a backend failed for good: note the failure, set keys, continue.

    Other errors (bad input, a bug) are raised again: they end the run with their own message.
    """
    failure = error.error
    if isinstance(failure, BaseException) and not is_backend_failure(failure):
        raise _anew(failure) from failure
    return work_without(state, error, goto, **update)


def _anew(failure: BaseException) -> BaseException:
    """A copy of a failure: LangGraph takes the object that a handler was given for handled, and goes on with the run.

    An image would be drawn without requirements, for example, before the run ends with the failure.
    """
    try:
        again = copy(failure)
    except Exception:  # its class cannot be made from its arguments
        again = failure
    return again if again is not failure else RuntimeError(f"{type(failure).__name__}: {failure}")


def _again(state: GemsState, node: str) -> Goto:
    """Do a node again, in a run that goes on; what it has spent is in the checkpoint from then on.

    LangGraph asks the handler once more instead, which would end or shorten the run for a fault that was mended.
    """
    goto: Any = Send(node, state) if "proposal" in state else node  # what was sent is sent again, and no more
    return Command(update={"usage": hand_over(state, node)}, goto=goto)
