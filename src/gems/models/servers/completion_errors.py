"""Errors that chat servers put into an answer with status 200."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from gems.errors import BackendError, is_passing_status, is_unpaid, meant_status
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
    kind = f"{details.get('type') or ''} {details.get('status') or ''} {details.get('code') or ''} {words}"
    status = status_of_error(details)
    if status is None:
        status = _status_of_account(kind) or (501 if is_unsupported(words) else None)
    else:
        status = meant_status(status, kind)
    is_passing = is_passing_status(status) if status else is_busy_kind(kind) or bool(_PASSING.search(kind))
    as_told = BackendError(words, retryable=False, status_code=status, reason=words)
    if was_understood and status not in _OF_ACCOUNT:
        status = None
    return BackendError(
        f"{what}: {words}{advice_for(as_told)}",
        retryable=is_passing and not (is_unpaid(kind) or is_unpaid(words)) and not reads_no_images(as_told),
        status_code=status,
        reason=words,
    )


_OF_ACCOUNT: Final = (401, 402)
"""Statuses of a key or an account, which will not be admitted at the next call either."""

_ACCOUNT_KINDS: Final = {
    "authentication_error": 401,
    "unauthenticated": 401,
    "invalid_api_key": 401,
    "invalidapikey": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "billing_error": 402,
}
"""What the types and codes of errors mean as a status of HTTP: those of Anthropic, Google, OpenAI and DashScope."""


def _status_of_account(kind: str) -> int | None:
    """The status of an error that tells of a key or an account in words alone; None if it does not."""
    status = next((status for name in kind.lower().split() if (status := _ACCOUNT_KINDS.get(name))), None)
    if status is None and is_unpaid(kind):
        return 402
    return status or (401 if meant_status(400, kind) == 401 else None)


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
    words = "" if has_choices else error_message(json.dumps(answer).encode())
    return answer if words and words.lower() not in _ENDS and not _is_success(words) else None


_ENDS: Final = frozenset({"message", "completed", "complete", "incomplete"})
"""What answers of Anthropic's protocol and of the Responses API are and how they end, if they say nothing else."""


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
