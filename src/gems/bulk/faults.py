"""What went wrong in many prompts, by the step that failed, for every report."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, TypedDict

from gems.bulk.results import BatchRow

__all__ = ["Fault", "faults_of", "in_words"]

_STEP: Final = re.compile(r"([a-z_]+): ")
"""The step's name, with which the nodes of the graph begin their lines."""
_VARIABLE: Final = re.compile(r"\b[0-9a-f]*\d[0-9a-f]*\b")
"""Numbers and ids, which differ between errors that say the same."""
_MAX_LINE: Final = 300


class Fault(TypedDict):
    """The errors of one step."""

    step: str
    """A node of the graph; or else ``input`` or ``backend``, by the error's kind; ``other`` if neither is known."""
    prompts: int
    """Prompts in which it failed."""
    failed: int
    """How many of them have failed for that reason; the others went on without the step."""
    commonest: str
    """An error line of the kind that most of these prompts have."""


def faults_of(rows: Iterable[BatchRow]) -> list[Fault]:
    """The faults in results, the most frequent step first."""
    prompts, failures = Counter[str](), Counter[str]()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    examples: dict[tuple[str, str], str] = {}
    for row in rows:
        lines = list(_lines(row))
        steps = {step for step, _ in lines}
        prompts.update(steps)
        if row.get("error"):
            failures.update({lines[-1][0]})
        for step, kind in {(step, _VARIABLE.sub("#", line)) for step, line in lines}:
            kinds[step][kind] += 1
        for step, line in lines:
            examples.setdefault((step, _VARIABLE.sub("#", line)), line)
    return [
        Fault(
            step=step, prompts=count, failed=failures[step], commonest=examples[step, kinds[step].most_common(1)[0][0]]
        )
        for step, count in prompts.most_common()
    ]


def in_words(fault: Fault) -> str:
    """A fault as one line."""
    prompts = "1 prompt" if fault["prompts"] == 1 else f"{fault['prompts']:,} prompts"
    share = {0: "which went on without it", fault["prompts"]: "failed"}.get(
        fault["failed"], f"{fault['failed']:,} of them failed"
    )
    return f"{prompts}, {share}: {fault['commonest']}"


def _lines(row: BatchRow) -> Iterator[tuple[str, str]]:
    """Each error of a prompt with its step; the one that ended it comes last."""
    errors = list(row.get("errors") or [])
    error = row.get("error", "")
    if error and error != "; ".join(errors):
        errors.append(error)
    for line in errors:
        match = _STEP.match(line)
        step = match[1] if match else row.get("error_kind", "other")
        yield step, line.removeprefix(match[0] if match else "")[:_MAX_LINE]
