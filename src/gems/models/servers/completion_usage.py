"""The tokens that a chat server has counted, under whatever names and wherever in its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gems.models.lenient import field_name

__all__ = ["tokens_of"]

_PROMPT: Final = (
    *("prompt_tokens", "input_tokens", "prompt_token_count", "input_token_count", "prompt_eval_count"),
    *("tokens_evaluated", "num_input_tokens"),
)
_COMPLETION: Final = (
    *("completion_tokens", "output_tokens", "candidates_token_count", "completion_token_count", "output_token_count"),
    *("eval_count", "tokens_predicted", "generated_tokens", "num_output_tokens", "num_generated_tokens"),
)
_TOTAL: Final = ("total_tokens", "total_token_count")
_CACHED: Final = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_write_input_tokens")
"""Names of tokens of the prompt that some providers do not count among its tokens."""
_THOUGHTS: Final = ("reasoning_tokens", "thoughts_token_count")
"""Names of tokens of the completion that some providers do not count among its tokens."""
_DETAILS: Final = ("prompt_tokens_details", "completion_tokens_details")
_DETAILS_OF_THOUGHTS: Final = ("completion_tokens_details", "output_tokens_details")
_REPORTS: Final = ("usage", "usage_metadata", "x_groq", "token_usage", "details", "meta", "billed_units", "tokens")
"""Names of the objects in which the counts stand, one inside of another."""
_MOST_TOKENS: Final = 10**9
"""A count above this one is none."""


def tokens_of(*answers: object) -> dict[str, Any] | None:
    """The counts of tokens in OpenAI's names, 0 where there is none; None if the server does not count.

    Where the total is more than its parts, the rest are tokens of the completion, such as those of thoughts, as far as
    they are not tokens of the prompt that a provider has kept ready. Where no total tells of more, tokens of a kind
    that providers leave out are added if there are more of them than of what should include them, or if the names are
    of a provider that leaves them out.

    Args:
        *answers: Where the counts may stand, most certain first: an answer, and what is around it or in it.
    """
    for answer in answers:
        for report in _reports(answer):
            if any(_first(report, names) for names in (_PROMPT, _COMPLETION, _TOTAL)):
                return _tidy(report)
    is_counting = any(isinstance(answer, Mapping) and isinstance(answer.get("usage"), Mapping) for answer in answers)
    return _tidy({}) if is_counting else None


def _reports(answer: object, depth: int = 3) -> Iterator[Mapping[str, Any]]:
    """The objects in which counts may stand: those with a name that says so, then the answer itself."""
    if not isinstance(answer, Mapping):
        return
    fields = {field_name(name): value for name, value in answer.items()}
    for name in _REPORTS if depth else ():
        yield from _reports(fields.get(name), depth - 1)
    yield fields


def _tidy(report: Mapping[str, Any]) -> dict[str, Any]:
    prompt, completion, total = (_first(report, names) for names in (_PROMPT, _COMPLETION, _TOTAL))
    cached, thoughts = sum(_count(report.get(name)) for name in _CACHED), _thoughts(report)
    if rest := max(0, total - prompt - completion):
        more_of_prompt = min(rest, cached) if prompt else rest
        more_of_completion = rest - more_of_prompt
    else:
        is_anthropic = not total and not any(_count(report.get(n)) for n in _PROMPT if n != "input_tokens")
        is_google = not total and "candidates_token_count" in report
        more_of_prompt = cached if is_anthropic or cached > prompt else 0
        more_of_completion = thoughts if is_google or thoughts > completion else 0
    details = {
        name: {key: _count(value) for key, value in part.items() if value is not None}
        for name in _DETAILS
        if isinstance(part := report.get(name), Mapping)
    }
    counts = {"prompt_tokens": prompt + more_of_prompt, "completion_tokens": completion + more_of_completion}
    return {**counts, "total_tokens": max(total, sum(counts.values())), **details}


def _thoughts(report: Mapping[str, Any]) -> int:
    details = [part for name in _DETAILS_OF_THOUGHTS if isinstance(part := report.get(name), Mapping)]
    parts = [report, *({field_name(key): value for key, value in part.items()} for part in details)]
    return max(_first(part, _THOUGHTS) for part in parts)


def _first(report: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next(filter(None, (_count(report.get(name)) for name in names)), 0)


def _count(value: object) -> int:
    if isinstance(value, bool):
        return 0
    try:
        count = int(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0
    return count if 0 <= count <= _MOST_TOKENS else 0
