"""What past runs show about wording: which changes of a prompt turned a failed requirement into a passed one.

Within a run, the user's prompt and the requirements stay the same. An attempt that fails a requirement and a later one
that passes it differ in their drafts and in the noise. Over many runs the noise averages out, and what the successful
changes have in common remains. A planner that recalls past runs leaves no such contrast, because it words its first
drafts like their best ones; a lesson is then what most drafts that passed contain, and the users' prompts do not.

Either is a guess, not a proof: a run stops at its first success, so whatever was tried last looks good. Skills drafted
from it have to pass a trial (``gems skills learn``).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from gems.graph.state import Kind
from gems.memory.trajectory import PastAttempt, Trajectory
from gems.wording import request_signature

__all__ = [
    "MIN_CHANGES",
    "DraftChange",
    "Lesson",
    "changes_of",
    "is_held_out",
    "lessons_of",
    "phrases_of",
    "separating_phrases",
]

MIN_CHANGES: Final = 8
"""Successful changes below which there is nothing to learn."""
_LONGEST_PHRASE: Final = 4
"""Length of a phrase, in words."""
_MOST_PHRASES: Final = 8
_ALIKE: Final = 0.5
"""Cosine of the words that two changes added, above which the changes are of one kind."""
_TOKEN: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[;:,]")
_SLOT: Final = "…"
"""Stands for words of the user's prompt: a lesson is about how things are asked for, not about what was asked for."""


@dataclass(frozen=True, slots=True)
class DraftChange:
    """A requirement that an attempt failed, the next attempt's draft, and whether that attempt passed it."""

    run: str
    prompt: str
    """The user's prompt."""
    kind: Kind
    before: str
    """The draft that failed; empty if there is none to compare with."""
    after: str
    fixed: bool


@dataclass(frozen=True, slots=True)
class Lesson:
    """Changes of one kind, on one kind of requirement."""

    kind: Kind
    phrases: tuple[str, ...]
    """What the drafts that passed contain and those that failed do not, the strongest first."""
    fixes: tuple[DraftChange, ...]
    change_count: int
    """The number of changes of this kind, successful or not."""

    @property
    def is_contrast(self) -> bool:
        """Whether there are failed drafts to compare with."""
        return any(change.before for change in self.fixes)

    @property
    def runs(self) -> list[str]:
        """The runs that it comes from."""
        return list(dict.fromkeys(change.run for change in self.fixes))


def is_held_out(prompt: str) -> bool:
    """Whether a user's prompt is kept for trials. About half of them are; no skill is drafted from these.

    What a prompt asks for decides, not its wording: the same request in other words is on the same side.
    """
    digest = hashlib.sha256(" ".join(request_signature(prompt)).encode()).digest()
    return digest[-1] % 2 == 1


def changes_of(run_id: str, run: Trajectory) -> Iterator[DraftChange]:
    """Every requirement that an attempt failed, with the answer to it after the next attempt's different draft."""
    kinds = {requirement.id: requirement.kind for requirement in run.requirements}
    for attempt, following in zip(run.attempts, run.attempts[1:], strict=False):
        if attempt.prompt == following.prompt:
            continue
        later = _answers(following)
        for name, passed in _answers(attempt).items():
            if not passed and name in later and name in kinds:
                yield DraftChange(run_id, run.prompt, kinds[name], attempt.prompt, following.prompt, fixed=later[name])


def _answers(attempt: PastAttempt) -> dict[str, bool]:
    return {v.requirement_id: v.answer == "yes" for v in attempt.verdicts if v.is_known}


def lessons_of(runs: Iterable[tuple[str, Trajectory]]) -> list[Lesson]:
    """What the runs teach, by kind of requirement and kind of change; the best supported first."""
    runs = list(runs)
    changes_by_kind: dict[Kind, list[DraftChange]] = defaultdict(list)
    for run_id, run in runs:
        for change in changes_of(run_id, run):
            changes_by_kind[change.kind].append(change)
    lessons = []
    for kind, changes in changes_by_kind.items():
        separating = separating_phrases([run for _, run in runs], kind)
        lessons += [lesson for group in _clusters(changes) if (lesson := _contrast(kind, group, separating))]
    contrasted_kinds = {lesson.kind for lesson in lessons}
    for kind in changes_by_kind:
        if kind not in contrasted_kinds and (lesson := _wording_that_passed(runs, kind)):
            lessons.append(lesson)
    return sorted(lessons, key=lambda lesson: (-len(lesson.fixes), lesson.kind))


def _contrast(kind: Kind, group: Sequence[DraftChange], separating: dict[str, float]) -> Lesson | None:
    """What successful changes of one kind have in common; None if that is nothing, or if there are too few of them."""
    fixes = tuple(change for change in group if change.fixed)
    if len({change.run for change in fixes}) < MIN_CHANGES:
        return None
    counts = Counter(phrase for change in fixes for phrase in _added_phrases(change) if phrase in separating)
    if 2 * max(counts.values(), default=0) < len(fixes):
        return None  # no phrase is in half of them
    common = [phrase for phrase, count in counts.items() if 2 * count >= MIN_CHANGES]
    phrases = _longest(sorted(common, key=lambda phrase: (-separating[phrase] * counts[phrase], phrase)))
    return Lesson(kind, tuple(phrases[:_MOST_PHRASES]), fixes, len(group))


def _wording_that_passed(runs: Sequence[tuple[str, Trajectory]], kind: Kind) -> Lesson | None:
    """What most drafts contain that passed requirements of an often failed kind; None if that is nothing."""
    passing, failing_runs = list[DraftChange](), 0
    for run_id, run in runs:
        ids = [requirement.id for requirement in run.requirements if requirement.kind == kind]
        answers_of = [(attempt, _answers(attempt)) for attempt in run.attempts] if ids else []
        # An image that nobody has looked at has neither passed nor failed.
        passes = [
            (attempt, all(answers[i] for i in ids)) for attempt, answers in answers_of if answers.keys() >= {*ids}
        ]
        failing_runs += not all(passed for _, passed in passes)
        best = next((attempt for attempt, passed in passes if passed), None)
        if best is not None and best.prompt != run.prompt:
            passing.append(DraftChange(run_id, run.prompt, kind, "", best.prompt, fixed=True))
    counts = Counter(phrase for change in passing for phrase in phrases_of(change.after, change.prompt))
    common = [phrase for phrase, count in counts.items() if 2 * count >= len(passing)]
    if min(len(passing), failing_runs) < MIN_CHANGES or not common:
        return None
    phrases = _longest(sorted(common, key=lambda phrase: (-counts[phrase], phrase)))
    return Lesson(kind, tuple(phrases[:_MOST_PHRASES]), tuple(passing), len(passing))


def separating_phrases(runs: Sequence[Trajectory], kind: Kind) -> dict[str, float]:
    """Phrases with which requirements of a kind pass more often than without, each run compared with itself.

    The value is the mean difference in the rate of passing, over the runs that have drafts with the phrase and drafts
    without; a phrase is listed if the mean exceeds twice its standard error, and there are enough runs.
    """
    differences: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        rates = _rates_of_passing(run, kind)
        for phrase in set().union(*(phrases for phrases, _ in rates)):
            rates_with = [rate for phrases, rate in rates if phrase in phrases]
            rates_without = [rate for phrases, rate in rates if phrase not in phrases]
            if rates_without:
                differences[phrase].append(float(np.mean(rates_with) - np.mean(rates_without)))
    means = {}
    for phrase, values in differences.items():
        mean, error = float(np.mean(values)), float(np.std(values)) / len(values) ** 0.5
        if len(values) >= MIN_CHANGES and mean > 2 * error and mean > 0:
            means[phrase] = round(mean, 4)
    return means


def _rates_of_passing(run: Trajectory, kind: Kind) -> list[tuple[frozenset[str], float]]:
    """For each attempt, its draft's phrases and the share of requirements of the kind that it passed."""
    ids = {requirement.id for requirement in run.requirements if requirement.kind == kind}
    rates = []
    for attempt in run.attempts:
        answers = [passed for name, passed in _answers(attempt).items() if name in ids]
        if answers:
            rates.append((phrases_of(attempt.prompt, run.prompt), sum(answers) / len(answers)))
    return rates


@lru_cache(maxsize=100_000)
def phrases_of(draft: str, prompt: str) -> frozenset[str]:
    """A draft's phrases of up to four words, and its punctuation; words of the user's prompt are replaced by a slot."""
    own = set(_TOKEN.findall(prompt.lower())) - {";", ":", ","}
    tokens = [_SLOT if token in own else token for token in _TOKEN.findall(draft.lower())]
    phrases = set()
    for start in range(len(tokens)):
        for end in range(start + 1, min(start + _LONGEST_PHRASE, len(tokens)) + 1):
            phrase = tokens[start:end]
            if _SLOT not in (phrase[0], phrase[-1]) and (len(phrase) == 1 or not {";", ":", ","} & set(phrase)):
                phrases.add(" ".join(phrase))
    return frozenset(phrases)


def _added_phrases(change: DraftChange) -> frozenset[str]:
    return phrases_of(change.after, change.prompt) - phrases_of(change.before, change.prompt)


def _longest(phrases: Sequence[str]) -> list[str]:
    """Without those that are part of another: "in a row" is kept, "row" is not."""
    return [p for p in phrases if not any(p != other and f" {p} " in f" {other} " for other in phrases)]


def _clusters(changes: Sequence[DraftChange]) -> list[list[DraftChange]]:
    """Changes that add similar words: each joins the nearest group so far, or starts a new one (leader clustering)."""
    groups: list[tuple[Counter[str], list[DraftChange]]] = []
    for change in changes:
        words = Counter(phrase for phrase in _added_phrases(change) if " " not in phrase)
        nearest = max(groups, key=lambda group: _cosine(words, group[0]), default=None)
        if nearest and _cosine(words, nearest[0]) >= _ALIKE:
            nearest[0].update(words)
            nearest[1].append(change)
        else:
            groups.append((words, [change]))
    return [members for _, members in groups]


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    norm = (sum(n * n for n in a.values()) * sum(n * n for n in b.values())) ** 0.5
    return sum(n * b[word] for word, n in a.items()) / norm if norm else float(a == b)
