"""What runs have taught: the second of memory's two layers, made from the first, and what is retrieved.

One experience per wish: runs with the same prompt, but for case and white space, on the same models are merged and
counted. Later runs that were helped by it say how they fared, against the runs with the nearest prompts: what never
helps sinks in the ranking, and is the first to go where memory is limited. All of it can be made again from the facts.

Two layers of memory are the paper's (arXiv 2603.28088), maximal marginal relevance is Carbonell and Goldstein's (1998).
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Final

import numpy as np
from langgraph.store.base import BaseStore, Item, PutOp, SearchItem
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gems.graph.state import Failure, Kind, Memory
from gems.memory.demands import demands_of
from gems.memory.trajectory import SOLVED, TRAJECTORIES, Trajectory, namespace
from gems.wording import content_words, jaccard

__all__ = [
    "EXPERIENCES",
    "MIN_SIMILARITY",
    "Experience",
    "distil",
    "merge",
    "past_runs",
    "prune",
    "recall",
    "remake",
    "remember",
]

_LOG: Final = logging.getLogger(__name__)

EXPERIENCES: Final = ("gems", "experience")
MIN_SIMILARITY: Final = 0.35
"""Cosine similarity below which a past prompt has little to say: with MiniLM, unrelated short sentences lie mostly
under 0.3, and prompts that share an object and a relation above 0.5."""

_NEAR: Final = 32
"""Candidates by meaning alone, among which demands, usefulness and diversity decide."""
_DEMANDS: Final = 0.5
"""Weight of demands beside meaning."""
_DIVERSITY: Final = 0.5
"""Weight of being unlike those chosen before, beside relevance."""
_OTHER_MODEL: Final = 0.8
"""What relevance is multiplied with, where another image model was prompted: its wording may not carry over."""
_DOUBT: Final = 4
"""Uses that an experience's usefulness is judged by as if they had brought nothing: few uses say little."""
_FAILURES: Final = 2
_RUNS: Final = 50
_USES: Final = 50
_PAGE: Final = 500


class Experience(BaseModel):
    """What the runs for one wish have taught."""

    model_config = ConfigDict(frozen=True)

    prompt: str = Field(description="What the user asked for, as first written.")
    kinds: list[Kind] = Field(description="What kinds of requirements the prompt made.")
    hard: list[Kind] = Field(default=[], description="The kinds that some attempt failed: what the lesson is about.")
    solved: bool
    best_prompt: str = Field(description="The generation prompt of the best attempt of the best run.")
    reward: float = Field(ge=0, le=1, description="The best run's, see Trajectory.")
    score: float = Field(ge=0, le=1)
    lesson: str = Field(default="", description="What the refiner learned, at most 100 words.")
    avoid: list[Failure] = Field(default=[], description="Prompts that did not work, and what they missed.")
    mllm: str
    generator: str
    run: str = Field(description="The best run's id.")
    runs: list[str] = Field(description="The runs it was made from, the latest last; at most fifty are named.")
    count: int = Field(default=1, ge=1, description="How many runs it was made from.")
    solved_count: int = Field(default=0, ge=0)
    mean_reward: float = Field(ge=0, le=1, description="Of all of them.")
    uses: list[tuple[str, float]] = Field(
        default=[], description="Runs that it was retrieved for, each with what it was worth more than its neighbours."
    )

    @property
    def usefulness(self) -> float:
        """Mean of what its uses brought, in [-1, 1], drawn towards 0 while they are few."""
        return sum(worth for _, worth in self.uses) / (len(self.uses) + _DOUBT)


def distil(run_id: str, past: Trajectory) -> Experience:
    """What one run teaches."""
    kinds = {requirement.id: requirement.kind for requirement in past.requirements}
    hard = [kinds[v.requirement_id] for a in past.attempts for v in a.verdicts if v.answer != "yes"]
    failures = {
        attempt.prompt: Failure(prompt=attempt.prompt, missed=tuple(attempt.failed[:3]))
        for attempt in past.attempts
        if attempt.failed and attempt.prompt != past.best_prompt
    }
    if not past.solved:
        failures[past.best_prompt] = Failure(prompt=past.best_prompt, missed=tuple(past.failed[:3]))
    return Experience(
        prompt=past.prompt,
        kinds=past.kinds,
        hard=list(dict.fromkeys(hard)),
        solved=past.solved,
        best_prompt=past.best_prompt,
        reward=past.reward,
        score=past.score,
        lesson=past.experience,
        avoid=list(failures.values())[-_FAILURES:],
        mllm=past.mllm,
        generator=past.generator,
        run=run_id,
        runs=[run_id],
        solved_count=int(past.solved),
        mean_reward=past.reward,
    )


def merge(old: Experience, new: Experience) -> Experience:
    """Two experiences of one wish as one: the better run's words, both runs' failures, the counts together."""
    best, other = (
        (new, old) if (new.solved, new.reward, new.score) > (old.solved, old.reward, old.score) else (old, new)
    )
    count = old.count + new.count
    failures = {failure.prompt: failure for failure in (*other.avoid, *best.avoid)}
    if best.solved:
        failures.pop(best.best_prompt, None)  # it failed once, by chance
    return best.model_copy(
        update={
            "prompt": old.prompt,
            "hard": list(dict.fromkeys([*best.hard, *other.hard])),
            "lesson": best.lesson or other.lesson,
            "avoid": list(failures.values())[-_FAILURES:],
            "runs": [*old.runs, *new.runs][-_RUNS:],
            "count": count,
            "solved_count": old.solved_count + new.solved_count,
            "mean_reward": (old.mean_reward * old.count + new.mean_reward * new.count) / count,
            "uses": [*old.uses, *new.uses][-_USES:],
        }
    )


def remake(old: Experience, gone: AbstractSet[str], runs: Mapping[str, Trajectory]) -> Experience | None:
    """An experience without some of the runs that it was made from, from the facts of the others; None if none is left.

    Where it was made from more runs than it names, those that are not named are gone too.
    """
    uses = [(run, worth) for run, worth in old.uses if run not in gone]
    if gone.isdisjoint(old.runs):
        return old.model_copy(update={"uses": uses})
    left = [distil(run, runs[run]) for run in old.runs if run not in gone and run in runs]
    return reduce(merge, left).model_copy(update={"uses": uses}) if left else None


def key_of(past: Trajectory | Experience) -> str:
    """Under which key the experience of this wish lies: case, white space and a full stop make no other wish."""
    wish = " ".join(unicodedata.normalize("NFKC", past.prompt).casefold().split()).rstrip(".! ")
    return hashlib.sha256("\0".join((wish, past.mllm, past.generator)).encode()).hexdigest()[:24]


# --- writing --------------------------------------------------------------------------------------------------------


def remember(store: BaseStore, user: str, run_id: str, past: Trajectory) -> None:
    """Write a run down: its facts, what it teaches, and how far what it had recalled was of use.

    Doing it again, after a crash, changes nothing. Of two runs with the same wish that end at the same instant in two
    processes, the experience may count one; the facts of both are kept.
    """
    experiences = namespace(user, EXPERIENCES)
    changed: dict[str, Experience] = {}
    key = key_of(past)
    known = _get(store, experiences, key)
    if known is None or run_id not in known.runs:
        made = distil(run_id, past)
        changed[key] = merge(known, made) if known else made
    if past.recalled:
        changed |= _credit(store, user, run_id, past, changed)
    facts = PutOp(namespace(user), run_id, past.model_dump(mode="json"), index=False)
    store.batch([facts, *(_put(experiences, name, experience) for name, experience in changed.items())])


def _credit(
    store: BaseStore, user: str, run_id: str, past: Trajectory, changed: dict[str, Experience]
) -> dict[str, Experience]:
    """What was recalled, with what this run was worth beyond the runs with the nearest prompts that did without it."""
    nearest = [
        (item.key, e)
        for item, e in _near(store, user, past.prompt)
        if run_id not in e.runs and (e.generator, e.mllm) == (past.generator, past.mllm)
    ]
    experiences = namespace(user, EXPERIENCES)
    credited = {}
    for key in past.recalled:
        used = changed.get(key) or _get(store, experiences, key)
        helped = {run for run, _ in used.uses} if used else set()
        others = [e.mean_reward for other, e in nearest if other != key and helped.isdisjoint(e.runs)]
        if used and others and run_id not in helped:
            uses = [*used.uses, (run_id, past.reward - float(np.mean(others)))]
            credited[key] = used.model_copy(update={"uses": uses[-_USES:]})
    return credited


def prune(store: BaseStore, user: str, *, limit: int | None, days: float | None) -> int:
    """Keep a user's memory within its limits: what is too old goes, then what helped least, then what is oldest.

    Args:
        store: Any LangGraph store.
        user: Whose.
        limit: Most experiences, and most trajectories; None is no limit.
        days: Longest time since a record was last written; None is no limit.

    Returns:
        How many records went.
    """
    gone: list[PutOp] = []
    for layer in (TRAJECTORIES, EXPERIENCES):
        space = namespace(user, layer)
        kept: list[tuple[float, datetime, str]] = []
        for item in _all(store, space):
            if days is not None and item.updated_at < datetime.now(UTC) - timedelta(days=days):
                gone.append(PutOp(space, item.key, None))
                continue
            experience = _read(item) if layer == EXPERIENCES else None
            kept.append((experience.usefulness if experience else 0.0, item.updated_at, item.key))
        surplus = len(kept) - limit if limit is not None else 0
        gone += [PutOp(space, key, None) for _, _, key in sorted(kept)[: max(0, surplus)]]
    runs = {op.key for op in gone if op.namespace == namespace(user)}
    solved = namespace(user, SOLVED)
    if runs:
        gone += [PutOp(solved, item.key, None) for item in _all(store, solved) if item.value.get("run") in runs]
    if gone:
        store.batch(gone)
    return len(gone)


# --- reading --------------------------------------------------------------------------------------------------------


def recall(store: BaseStore, user: str, prompt: str, limit: int, *, generator: str | None = None) -> list[Memory]:
    """What a user's past runs have to say about a prompt, the most relevant first; nothing where a store cannot search.

    Candidates are near in meaning. Among them decide what the prompts demand (``demands``), how useful an experience
    has been, whether it is of the same image model, and how much it differs from those chosen before.

    Args:
        store: Any LangGraph store with an index.
        user: Whose memory; no other is looked at.
        prompt: What is asked for now.
        limit: At most so many.
        generator: The name of the image model at hand; None: whichever.
    """
    if limit < 1:
        return []
    near = _near(store, user, prompt) or (_near(store, user, prompt) if _distil_all(store, user) else [])
    wanted, relevance = demands_of(prompt), []
    for item, experience in near:
        close = wanted.closeness(demands_of(experience.prompt))
        worth = (1 - _DEMANDS) * (item.score or 0) + _DEMANDS * close
        worth *= 1 + experience.usefulness
        relevance.append(worth * (1 if generator in (None, experience.generator) else _OTHER_MODEL))
    return [_memory(*near[i], relevance[i]) for i in _diverse(relevance, [e.prompt for _, e in near], limit)]


def _near(store: BaseStore, user: str, prompt: str) -> list[tuple[SearchItem, Experience]]:
    items = store.search(namespace(user, EXPERIENCES), query=prompt, limit=_NEAR)
    read = [(item, _read(item)) for item in items if item.score is not None and item.score >= MIN_SIMILARITY]
    return [(item, experience) for item, experience in read if experience]


def _diverse(relevance: Sequence[float], prompts: Sequence[str], limit: int) -> list[int]:
    """Maximal marginal relevance: places of those to choose, in order."""
    words = [Counter(content_words(prompt)) for prompt in prompts]
    left, chosen = list(range(len(prompts))), list[int]()
    alike = [0.0] * len(prompts)
    while left and len(chosen) < limit:
        best = max(left, key=lambda i: (1 - _DIVERSITY) * relevance[i] - _DIVERSITY * alike[i])
        left.remove(best)
        chosen.append(best)
        for i in left:
            alike[i] = max(alike[i], jaccard(words[i], words[best]))
    return chosen


def _memory(item: SearchItem, experience: Experience, relevance: float) -> Memory:
    return Memory(
        key=item.key,
        run=experience.run,
        similarity=round(item.score or 0, 4),
        relevance=round(relevance, 4),
        usefulness=round(experience.usefulness, 4),
        prompt=experience.prompt,
        solved=experience.solved,
        best_prompt=experience.best_prompt,
        experience=experience.lesson,
        avoid=tuple(experience.avoid),
        count=experience.count,
        solved_count=experience.solved_count,
    )


def _distil_all(store: BaseStore, user: str) -> bool:
    """Make the experiences of a user from the trajectories, where there are none yet: earlier versions kept none."""
    experiences = namespace(user, EXPERIENCES)
    if store.search(experiences, limit=1):
        return False
    made: dict[str, Experience] = {}
    for run_id, past in past_runs(store, user):
        new, key = distil(run_id, past), key_of(past)
        made[key] = merge(made[key], new) if key in made else new
    if made:
        _LOG.info("memory: %d experiences of %s were made from its runs", len(made), user)
        puts = [_put(experiences, key, experience) for key, experience in made.items()]
        for start in range(0, len(puts), _PAGE):
            store.batch(puts[start : start + _PAGE])
    return bool(made)


def past_runs(store: BaseStore, user: str) -> Iterator[tuple[str, Trajectory]]:
    """The ids and the facts of a user's runs; what is no run is passed over."""
    for item in _all(store, namespace(user)):
        try:
            yield item.key, Trajectory.model_validate(item.value)
        except ValidationError:
            continue


def _all(store: BaseStore, space: tuple[str, ...]) -> Iterator[SearchItem]:
    """Every record, page by page."""
    offset = 0
    while items := store.search(space, limit=_PAGE, offset=offset):
        yield from items
        offset += len(items)


def _get(store: BaseStore, space: tuple[str, ...], key: str) -> Experience | None:
    item = store.get(space, key)
    return _read(item) if item else None


def _put(space: tuple[str, ...], key: str, experience: Experience) -> PutOp:
    return PutOp(space, key, experience.model_dump(mode="json"), index=["prompt"])


def _read(item: Item) -> Experience | None:
    """An experience; None for what is none, such as another program's record: it costs its help, not the run."""
    try:
        return Experience.model_validate(item.value)
    except ValidationError:
        return None
