"""Errors that chat servers put into an answer with status 200."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from gems.errors import BackendError, is_passing_status, is_unpaid
from gems.models.endings import ABORTED, NORMAL, finish_reason
from gems.models.failures import advice_for, reads_no_images
from gems.models.servers.completion_messages import read_content, read_message, says_something
from gems.models.servers.error_texts import error_message, is_busy_kind, minimax_status, status_of_error
from gems.models.unsupported_requests import is_unsupported
from gems.secrets import one_line

__all__ = ["error_of_choice", "error_of_completion", "server_error"]

_PASSING: Final = re.compile(
    r"too many|time[d]?.?out|busy|capacity|try again|internal|server.?error|upstream|abort|cancel|network|loading"
    r"|resource",
    re.IGNORECASE,
)
"""What a server says of errors that may pass, if it gives no code, beside ``is_busy_kind``."""


def server_error(what: str, error: object, *, was_understood: bool) -> BackendError:
    """The error in an answer with status 200, in the server's words.

    Args:
        what: What happened, for the message.
        error: The error as the server writes it: a text, or an object with a message, and a code or type.
        was_understood: Whether the server had begun to answer, so that another way of asking would be no better.
    """
    details: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": error}
    words = error_message(json.dumps(details).encode()) or details.get("type") or details.get("code")
    words = one_line(words or "no reason given")
    status = status_of_error(details)
    if status is None and is_unsupported(words):
        status = 501
    kind = f"{details.get('type') or ''} {details.get('code') or ''} {words}"
    is_passing = is_passing_status(status) if status else is_busy_kind(kind) or bool(_PASSING.search(kind))
    status = None if was_understood else status
    error_of_server = BackendError(f"{what}: {words}", retryable=False, status_code=status, reason=words)
    is_blind = reads_no_images(error_of_server)
    return BackendError(
        f"{error_of_server}{advice_for(error_of_server) if is_blind else ''}",
        retryable=is_passing and not (is_unpaid(kind) or is_unpaid(words)) and not is_blind,
        status_code=status,
        reason=words,
    )


def error_of_completion(answer: Mapping[str, Any], *, has_choices: bool) -> object:
    """The error in an answer; None if there is none.

    Args:
        answer: The JSON that a server answered with status 200.
        has_choices: Whether it has choices. Then a message beside them is no error.
    """
    error = answer.get("error")
    if error is True:
        return answer.get("message") or answer.get("detail") or "no reason given"
    if _is_error(error):
        return error
    report = answer.get("base_resp")
    if isinstance(report, Mapping) and str(report.get("status_code") or 0) != "0":
        code = report["status_code"]
        return {
            "message": report.get("status_msg") or f"status {code}",
            "status": minimax_status(report),
            "type": str(code),
        }
    return answer if not has_choices and error_message(json.dumps(answer).encode()) else None


def _is_error(error: object) -> bool:
    """Whether an error says anything; some servers put an empty one into each answer."""
    if isinstance(error, Mapping):
        values = [value for value in error.values() if value not in (None, "", 0, "0", False, [], {})]
        return any(not _is_success(value) for value in values)
    return bool(error) and not _is_success(error)


def _is_success(word: object) -> bool:
    return word in (200, "200") or (isinstance(word, str) and word.strip(" .").lower() in _SUCCESS)


_SUCCESS: Final = frozenset({"none", "null", "ok", "success", "succeeded", "no error", "no_error", "false"})
"""What servers write where an error would stand."""


def error_of_choice(choice: Mapping[str, Any]) -> object:
    """The error inside a choice; None if there is none."""
    message = choice.get("message")
    inner = message.get("error") if isinstance(message, Mapping) else None
    error: object = choice.get("error") or inner
    reason = choice.get("finish_reason")
    if error or not isinstance(reason, str):
        return error or None
    if reason.lower() != "error":
        answer = read_message(choice)
        is_normal = not reason or (finish_reason(reason) in NORMAL and reason.lower() not in ABORTED)
        return None if is_normal or (answer and says_something(answer)) else f"it gave no answer ({reason})"
    native = choice.get("native_finish_reason")
    return (read_content(message.get("content")) if isinstance(message, Mapping) else "") or native or "no reason given"
