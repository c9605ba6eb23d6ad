"""The errors that GEMS raises on purpose, each with a one-line message for the user."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "PAY_HINT",
    "BackendError",
    "ContentRefusedError",
    "GemsError",
    "InputError",
    "MalformedAnswerError",
    "is_passing_status",
    "is_rate_limited",
    "is_unloadable",
    "is_unpaid",
    "lacks_memory",
    "may_cost",
    "meant_status",
]


class GemsError(Exception):
    """Base class of all errors raised on purpose."""


class InputError(GemsError, ValueError):
    """The user's input cannot be used: a prompt, an option, a file, a model name. Never retried."""


class BackendError(GemsError, RuntimeError):
    """A model or a store failed.

    Attributes:
        retryable: Whether a retry may help.
        status_code: The HTTP status of a server's answer, if the error came from one.
        reason: What the server said, without our words around it; the whole message if nobody else said anything.
        requests: How many requests of one call have failed, each of which may have been charged. None was, if no
            connection was made.
        lost_answers: How many of them may have been answered; None if that follows from the error.
        may_cost: Whether a server may have drawn, and charged for, an image that is lost.
    """

    def __init__(
        self, message: str, *, retryable: bool = True, status_code: int | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.status_code = status_code
        self.reason = message if reason is None else reason
        self.requests = 1
        self.lost_answers: int | None = None
        self.may_cost = False


class ContentRefusedError(BackendError):
    """The provider of an image model refused a prompt. Another wording may be accepted; the same one never is."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class MalformedAnswerError(BackendError):
    """A chat model answered, but not in the requested form. It has been asked again already, as often as is of use.

    Attributes:
        answer: What it wrote instead, if anything.
    """

    def __init__(self, message: str, answer: str = "") -> None:
        super().__init__(message, retryable=False)
        self.answer = answer


def is_passing_status(status: int) -> bool:
    """Whether an HTTP status stands for a transient fault: too many requests, a timeout, a server error.

    A server that does not know what it is asked (501), or how (505), will not learn it.
    """
    return status in (408, 409, 425, 429) or (status >= 500 and status not in (501, 505))


_NOTHING_ACCEPTED: Final = frozenset({425, 429, 503, 521, 523, 529})
"""Statuses of a server that is busy, overloaded or out of reach, so that it has done nothing of what it was asked."""


def may_cost(status: int) -> bool:
    """Whether what failed with a transient HTTP status may have been done, and charged.

    A gateway that waited too long (504), for example, does not know what the server behind it did.
    """
    return is_passing_status(status) and status not in _NOTHING_ACCEPTED


_RATE_LIMITED: Final = re.compile(
    r"rate.?limit[\w ]{0,24}(?:exceeded|reached|hit\b)|(?:exceed\w*|reached|hit|over) [\w ]{0,24}rate.?limit"
    r"|rate.?limited|throttl(?:ing|ed)\b|too many requests|请求过于频繁",
    re.IGNORECASE,
)


def is_rate_limited(words: str) -> bool:
    """Whether a server says that it got too many requests, and has not taken this one."""
    return bool(_RATE_LIMITED.search(words)) and not is_unpaid(words)


def meant_status(status: int, words: str) -> int:
    """The HTTP status that an error stands for: some servers tell of a rate limit, or of a wrong key, with another one.

    xAI and Google call a key that is not valid a bad request.

    Args:
        status: The status of the answer.
        words: What the server says.
    """
    if status in (400, 403) and is_rate_limited(words):
        return 429
    return 401 if status == 400 and _WRONG_KEY.search(words) else status


_WRONG_KEY: Final = re.compile(
    r"\bapi.?keys? (?:is |was |has )?(?:been )?(?:in|not )?(?:valid|expired|revoked|disabled|not found|missing)"
    r"|(?:invalid|incorrect|wrong|expired|revoked|missing|no) api.?key\b|api_key_invalid",
    re.IGNORECASE,
)


_UNPAID: Final = re.compile(
    r"insufficient.?(?:quota|balance|credits?|funds)|(?:exceeded|used up|out of|no) .{0,24}(?:quota|credits?)"
    r"|quota.{0,24}(?:exceeded|exhausted|used up)|credit.?balance|billing|payment.?required"
    r"|budget (?:has been )?exceeded|budget_exceeded|exceeded.?budget|over budget"
    r"|exhausted.?(?:balance|credits?)|(?:balance|credits?) (?:is |are |was |has been )?(?:exhausted|used up|depleted)"
    r"|not enough (?:balance|credit)|arrears|余额不足|欠费"
    r"|(?:requires?|needs?|only (?:available )?(?:on|for|in|with)) (?:an? |the )?(?:\w+ )?"
    r"(?:paid|pro|premium|paying) (?:plan|account|tier|subscription)"
    r"|not (?:available|included|supported) (?:on|in|for|with) (?:the |your )?(?:\w+ )?free (?:plan|account|tier)",
    re.IGNORECASE,
)
_PASSES_SOON: Final = re.compile(
    r"rate.?limit(?!.?error)|(?:retry|again) (?:in|after)|retry.?delay|per.?(?:second|minute)|\b[rt]p[ms]\b",
    re.IGNORECASE,
)
"""What servers say of limits that they lift by themselves; some speak of plans and billing in the same breath."""


PAY_HINT: Final = "; waiting does not help: pay for more, or give another key"


def is_unpaid(text: str) -> bool:
    """Whether a server says that an account has nothing left to spend, so that no waiting helps."""
    return bool(_UNPAID.search(text)) and not _PASSES_SOON.search(text)


_UNLOADABLE: Final = re.compile(
    r"\b(?:requires?|needs?) (?:more|at least|about|approximately)\b[^.;]{0,40}\bmemory"
    r"|(?:not enough|insufficient) (?:\w+ ){0,2}(?:memory|resources) to (?:load|start)|unable to load full model"
    r"|request too large for system|due to insufficient system resources",
    re.IGNORECASE,
)
_LACKS_MEMORY: Final = re.compile(
    r"\bout of (?:\w+ )?memory|\boutofmemory|(?:not enough|insufficient) (?:\w+ ){0,2}memory"
    r"|(?:can(?:no|')t|failed to|unable to) allocate\b|memory layout cannot be allocated",
    re.IGNORECASE,
)


def is_unloadable(text: str) -> bool:
    """Whether a server says that a model does not fit into its memory: it has done nothing, and will not."""
    return bool(_UNLOADABLE.search(text))


def lacks_memory(text: str) -> bool:
    """Whether a server says that it has too little memory, for a model or for an answer."""
    return is_unloadable(text) or bool(_LACKS_MEMORY.search(text))
