"""What past runs show about wording: which changes of a prompt came with success where the prompt before had failed.

Within one run the wish is the same, and so is what is asked of the image. An attempt that fails a requirement and a
later one that passes it differ in their prompts and in the noise. Over many runs the noise evens out, and what the
changes that worked have in common stays. A planner that recalls past runs leaves no such contrast, since its first
prompts are worded like their best: there, a lesson is what most prompts that passed have, and their wishes have not.

Either is a guess and no proof (a run stops at its first success, so that whatever was tried last looks good). Skills
drafted from it have to pass a gate (``gems skills learn``).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from gems.graph.state import Kind
from gems.memory.trajectory import PastAttempt, Trajectory
from gems.wording import content_words

__all__ = ["MIN_CHANGES", "Change", "Lesson", "changes_of", "is_held_out", "lessons_of", "separating_phrases"]

MIN_CHANGES: Final = 8
"""Changes that fixed something, below which there is nothing to learn."""
_LONGEST_PHRASE: Final = 4
_MOST_PHRASES: Final = 8
_ALIKE: Final = 0.5
"""Cosine of the words that two changes brought in, above which they are of one kind."""
_TOKEN: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[;:,]")
_SLOT: Final = "…"
"""Stands for the wish's own words: how a thing is asked for is learned, not what was asked for."""


@dataclass(frozen=True, slots=True)
class Change:
    """A requirement that an attempt failed, the next prompt, and whether that one passed it."""

    run: str
    wish: str
    kind: Kind
    before: str
    """Empty where there is none to compare with."""
    after: str
    fixed: bool


@dataclass(frozen=True, slots=True)
class Lesson:
    """Changes of one kind, on one kind of requirement."""

    kind: Kind
    phrases: tuple[str, ...]
    """What the prompts that worked have and those that failed have not, the strongest first."""
    fixes: tuple[Change, ...]
    tried: int
    """How many changes of this kind there were, successful or not."""

    @property
    def is_contrast(self) -> bool:
        """Whether there are prompts that failed to compare with."""
        return any(change.before for change in self.fixes)

    @property
    def runs(self) -> list[str]:
        """The runs that it comes from."""
        return list(dict.fromkeys(change.run for change in self.fixes))


def is_held_out(wish: str) -> bool:
    """Whether a wish is kept for the gate: half of them are, by what they say; a skill is never drafted from these."""
    return zlib.crc32(" ".join(content_words(wish)).encode()) % 2 == 1


def changes_of(run_id: str, past: Trajectory) -> Iterator[Change]:
    """Every requirement that an attempt failed, with what the next attempt's other prompt made of it."""
    asked = {r.id: r.kind for r in past.requirements}
    for one, following in zip(past.attempts, past.attempts[1:], strict=False):
        if one.prompt == following.prompt:
            continue
        then = _answers(following)
        for name, passed in _answers(one).items():
            if not passed and name in then and name in asked:
                yield Change(run_id, past.prompt, asked[name], one.prompt, following.prompt, fixed=then[name])


def _answers(attempt: PastAttempt) -> dict[str, bool]:
    return {v.requirement_id: v.answer == "yes" for v in attempt.verdicts}


def lessons_of(runs: Iterable[tuple[str, Trajectory]]) -> list[Lesson]:
    """What the runs teach, by kind of requirement and kind of change; the best supported first."""
    runs = list(runs)
    by_kind: dict[Kind, list[Change]] = defaultdict(list)
    for run_id, past in runs:
        for change in changes_of(run_id, past):
            by_kind[change.kind].append(change)
    lessons = []
    for kind, changes in by_kind.items():
        separating = separating_phrases([past for _, past in runs], kind)
        for group in _clusters(changes):
            fixes = tuple(change for change in group if change.fixed)
            if len({change.run for change in fixes}) < MIN_CHANGES:
                continue
            gained = Counter(phrase for change in fixes for phrase in _gained(change) if phrase in separating)
            if 2 * max(gained.values(), default=0) < len(fixes):
                continue  # nothing that half of them have in common
            common = [p for p, n in gained.items() if 2 * n >= MIN_CHANGES]
            phrases = _longest(sorted(common, key=lambda p: (-separating[p] * gained[p], p)))
            lessons.append(Lesson(kind, tuple(phrases[:_MOST_PHRASES]), fixes, len(group)))
    taught = {lesson.kind for lesson in lessons}
    lessons += [lesson for kind in by_kind if kind not in taught and (lesson := _wording_that_passed(runs, kind))]
    return sorted(lessons, key=lambda lesson: (-len(lesson.fixes), lesson.kind))


def _wording_that_passed(runs: Sequence[tuple[str, Trajectory]], kind: Kind) -> Lesson | None:
    """What most prompts have that passed requirements of a kind which is often failed; None if that is nothing."""
    passed, failed = list[Change](), 0
    for run_id, past in runs:
        asked = [r.id for r in past.requirements if r.kind == kind]
        rights = [all(_answers(attempt).get(name) for name in asked) for attempt in past.attempts] if asked else []
        failed += not all(rights)
        best = next((a for a, right in zip(past.attempts, rights, strict=False) if right), None)
        if best is not None and best.prompt != past.prompt:
            passed.append(Change(run_id, past.prompt, kind, "", best.prompt, fixed=True))
    had = Counter(phrase for change in passed for phrase in phrases_of(change.after, change.wish))
    common = [p for p, n in had.items() if 2 * n >= len(passed)]
    if min(len(passed), failed) < MIN_CHANGES or not common:
        return None
    phrases = _longest(sorted(common, key=lambda p: (-had[p], p)))
    return Lesson(kind, tuple(phrases[:_MOST_PHRASES]), tuple(passed), len(passed))


def separating_phrases(runs: Sequence[Trajectory], kind: Kind) -> dict[str, float]:
    """Phrases with which requirements of a kind pass more often than without, each run compared with itself.

    The value is the mean difference in the rate of passing, over the runs that have prompts with the phrase and prompts
    without; a phrase is listed where the mean exceeds twice its standard error, and there are enough runs.
    """
    differences: dict[str, list[float]] = defaultdict(list)
    for past in runs:
        ids = {r.id for r in past.requirements if r.kind == kind}
        rates = []
        for attempt in past.attempts:
            answers = [passed for name, passed in _answers(attempt).items() if name in ids]
            if answers:
                rates.append((phrases_of(attempt.prompt, past.prompt), sum(answers) / len(answers)))
        for phrase in set().union(*(phrases for phrases, _ in rates)):
            with_it = [rate for phrases, rate in rates if phrase in phrases]
            without = [rate for phrases, rate in rates if phrase not in phrases]
            if without:
                differences[phrase].append(float(np.mean(with_it) - np.mean(without)))
    means = {}
    for phrase, found in differences.items():
        mean, error = float(np.mean(found)), float(np.std(found)) / len(found) ** 0.5
        if len(found) >= MIN_CHANGES and mean > 2 * error and mean > 0:
            means[phrase] = round(mean, 4)
    return means


@lru_cache(maxsize=100_000)
def phrases_of(prompt: str, wish: str) -> frozenset[str]:
    """Phrases of up to four words and the marks between clauses, with the wish's own words left open."""
    own = set(_TOKEN.findall(wish.lower())) - {";", ":", ","}
    tokens = [_SLOT if token in own else token for token in _TOKEN.findall(prompt.lower())]
    found = set()
    for start in range(len(tokens)):
        for end in range(start + 1, min(start + _LONGEST_PHRASE, len(tokens)) + 1):
            phrase = tokens[start:end]
            if _SLOT not in (phrase[0], phrase[-1]) and (len(phrase) == 1 or not {";", ":", ","} & set(phrase)):
                found.add(" ".join(phrase))
    return frozenset(found)


def _gained(change: Change) -> frozenset[str]:
    return phrases_of(change.after, change.wish) - phrases_of(change.before, change.wish)


def _longest(phrases: Sequence[str]) -> list[str]:
    """Without those that are part of another: "in a row" says it, "row" does not."""
    return [p for p in phrases if not any(p != other and f" {p} " in f" {other} " for other in phrases)]


def _clusters(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes that bring in much the same words: each joins the nearest group so far, or begins one (leader method)."""
    groups: list[tuple[Counter[str], list[Change]]] = []
    for change in changes:
        words = Counter(phrase for phrase in _gained(change) if " " not in phrase)
        near = max(groups, key=lambda group: _cosine(words, group[0]), default=None)
        if near and _cosine(words, near[0]) >= _ALIKE:
            near[0].update(words)
            near[1].append(change)
        else:
            groups.append((words, [change]))
    return [members for _, members in groups]


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    norm = (sum(n * n for n in a.values()) * sum(n * n for n in b.values())) ** 0.5
    return sum(n * b[word] for word, n in a.items()) / norm if norm else float(a == b)
