"""The lessons of past runs: the second of memory's two layers, derived from the first, and what a run recalls.

There is one experience per prompt: runs whose prompts differ only in case and white space, on the same models, are
merged and counted. A later run that recalls an experience is compared with runs of similar prompts that did not.
Experiences that never help sink in the ranking, and are the first to be pruned if memory is limited.

The two layers of memory are from the GEMS paper (arXiv 2603.28088), maximal marginal relevance is from Carbonell and
Goldstein (1998).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Annotated, Any, Final

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

EXPERIENCES: Final = ("gems", "experience")
"""Namespace of the experiences, before the user's label; the keys are ``key_of`` a run."""
MIN_SIMILARITY: Final = 0.35
"""Cosine similarity below which a past prompt is ignored. With MiniLM, unrelated short sentences are mostly below 0.3,
and prompts that share an object and a relation above 0.5."""

_CANDIDATES: Final = 32
"""Number of experiences found by meaning alone, which are then ranked by demands, usefulness and diversity."""
_DEMANDS_WEIGHT: Final = 0.5
"""Weight of similar demands in the relevance; similar meaning has the rest."""
_DIVERSITY_WEIGHT: Final = 0.5
"""Weight of differing from the experiences chosen before; relevance has the rest."""
_PRIOR_USES: Final = 4
"""Number of uses without benefit that are added to the observed ones, so that a few uses prove little."""
_MAX_FAILURES: Final = 2
"""Number of failed prompts that an experience keeps."""
_MAX_RUNS: Final = 50
"""Number of run ids that an experience keeps."""
_MAX_USES: Final = 50
"""Number of uses that an experience keeps."""
_PAGE: Final = 500
"""Records read from the store at a time."""


class Experience(BaseModel):
    """What the runs of one prompt have taught."""

    model_config = ConfigDict(frozen=True)

    prompt: str = Field(description="The user's prompt, as first written.")
    kinds: list[Kind] = Field(description="The kinds of the prompt's requirements.")
    hard: list[Kind] = Field(default=[], description="The kinds that an attempt failed, which the lesson is about.")
    solved: bool
    best_prompt: str = Field(description="The generation prompt of the best attempt of the best run.")
    reward: float = Field(ge=0, le=1, description="The reward of the best run, see Trajectory.")
    score: float = Field(ge=0, le=1)
    lesson: str = Field(default="", description="The refiner's lesson, at most 100 words.")
    avoid: list[Failure] = Field(default=[], description="Prompts that did not work, and the questions they failed.")
    mllm: str
    generator: str
    run: str = Field(description="The id of the best run.")
    runs: list[str] = Field(description="The runs it was derived from, the latest last; at most fifty.")
    count: int = Field(default=1, ge=1, le=10**9, description="The number of runs it was derived from.")
    solved_count: int = Field(default=0, ge=0, le=10**9)
    mean_reward: float = Field(ge=0, le=1, description="The mean reward of these runs.")
    uses: list[tuple[str, Annotated[float, Field(ge=-1, le=1)]]] = Field(
        default=[], description="Runs that recalled it, each with its reward minus the mean reward of similar runs."
    )

    @property
    def usefulness(self) -> float:
        """The mean benefit of its uses, in [-1, 1], shrunk towards 0 while they are few."""
        return sum(benefit for _, benefit in self.uses) / (len(self.uses) + _PRIOR_USES)


def distil(run_id: str, past: Trajectory) -> Experience:
    """The experience from one run."""
    kinds = {requirement.id: requirement.kind for requirement in past.requirements}
    hard = [kinds[v.requirement_id] for a in past.attempts for v in a.verdicts if v.answer != "yes" and v.is_known]
    failures = {
        attempt.prompt: Failure(prompt=attempt.prompt, missed=tuple(attempt.failed_questions[:3]))
        for attempt in past.attempts
        if attempt.failed_questions and attempt.prompt != past.best_prompt
    }
    if not past.solved and _is_failure(past):
        failures[past.best_prompt] = Failure(prompt=past.best_prompt, missed=tuple(past.failed_questions[:3]))
    return Experience(
        prompt=past.prompt,
        kinds=past.kinds,
        hard=list(dict.fromkeys(hard)),
        solved=past.solved,
        best_prompt=past.best_prompt,
        reward=past.reward,
        score=past.score,
        lesson=past.experience,
        avoid=list(failures.values())[-_MAX_FAILURES:],
        mllm=past.mllm,
        generator=past.generator,
        run=run_id,
        runs=[run_id],
        solved_count=int(past.solved),
        mean_reward=past.reward,
    )


def _is_failure(past: Trajectory) -> bool:
    """Whether a run's best prompt is known not to have worked: a question says so, or a person against all answers."""
    best = [] if past.best is None else past.attempts[past.best].verdicts
    return bool(past.failed_questions) or all(verdict.answer == "yes" for verdict in best)


def merge(old: Experience, new: Experience) -> Experience:
    """One experience from two of the same prompt: the better run's words, the failures of both, the sums of counts."""
    best, other = (
        (new, old) if (new.solved, new.reward, new.score) > (old.solved, old.reward, old.score) else (old, new)
    )
    count = old.count + new.count
    failures = {failure.prompt: failure for failure in (*other.avoid, *best.avoid)}
    if best.solved:
        failures.pop(best.best_prompt, None)  # it failed in another run, by chance
    return best.model_copy(
        update={
            "prompt": old.prompt,
            "hard": list(dict.fromkeys([*best.hard, *other.hard])),
            "lesson": best.lesson or other.lesson,
            "avoid": list(failures.values())[-_MAX_FAILURES:],
            "runs": [*old.runs, *new.runs][-_MAX_RUNS:],
            "count": count,
            "solved_count": old.solved_count + new.solved_count,
            "mean_reward": (old.mean_reward * old.count + new.mean_reward * new.count) / count,
            "uses": [*old.uses, *new.uses][-_MAX_USES:],
        }
    )


def remake(old: Experience, forgotten: AbstractSet[str], runs: Mapping[str, Trajectory]) -> Experience | None:
    """An experience derived again without some of its runs; None if no run is left.

    If the experience was derived from more runs than it names, the unnamed ones are lost as well.

    Args:
        old: The experience to make again.
        forgotten: Ids of the runs to leave out.
        runs: The remaining runs, by id.
    """
    uses = [(run, benefit) for run, benefit in old.uses if run not in forgotten]
    if forgotten.isdisjoint(old.runs):
        return old.model_copy(update={"uses": uses})
    parts = [distil(run, runs[run]) for run in old.runs if run not in forgotten and run in runs]
    return reduce(merge, parts).model_copy(update={"uses": uses}) if parts else None


def key_of(past: Trajectory | Experience) -> str:
    """The key of the experience of a prompt on these models; case, white space and a final full stop do not matter."""
    prompt = " ".join(unicodedata.normalize("NFKC", past.prompt).casefold().split()).rstrip(".! ")
    return hashlib.sha256("\0".join((prompt, past.mllm, past.generator)).encode()).hexdigest()[:24]


# --- writing --------------------------------------------------------------------------------------------------------


def remember(store: BaseStore, user: str, run_id: str, past: Trajectory) -> None:
    """Store a run: its facts, its experience, and how useful the experiences were that it recalled.

    Storing it again, after a crash, changes nothing. If two processes store runs of the same prompt at the same moment,
    the experience may count only one of them; the facts of both are stored.
    """
    experiences = namespace(user, EXPERIENCES)
    updates: dict[str, Experience] = {}
    key = key_of(past)
    stored = _get(store, experiences, key)
    if stored is None or run_id not in stored.runs:
        new = distil(run_id, past)
        updates[key] = merge(stored, new) if stored else new
    if past.recalled:
        updates |= _credit(store, user, run_id, past, updates)
    facts = PutOp(namespace(user), run_id, past.model_dump(mode="json"), index=False)
    store.batch([facts, *(_put(experiences, name, experience) for name, experience in updates.items())])


def _credit(
    store: BaseStore, user: str, run_id: str, past: Trajectory, updates: Mapping[str, Experience]
) -> dict[str, Experience]:
    """The experiences that a run recalled, each with the run's benefit over runs of similar prompts without it."""
    import numpy as np

    similar = [
        (item.key, e)
        for item, e in _similar(store, user, past.prompt)
        if run_id not in e.runs and (e.generator, e.mllm) == (past.generator, past.mllm)
    ]
    experiences = namespace(user, EXPERIENCES)
    credited = {}
    for key in past.recalled:
        recalled = updates.get(key) or _get(store, experiences, key)
        recalling_runs = {run for run, _ in recalled.uses} if recalled else set()
        baseline = [e.mean_reward for other, e in similar if other != key and recalling_runs.isdisjoint(e.runs)]
        if recalled and baseline and run_id not in recalling_runs:
            uses = [*recalled.uses, (run_id, past.reward - float(np.mean(baseline)))]
            credited[key] = recalled.model_copy(update={"uses": uses[-_MAX_USES:]})
    return credited


def prune(store: BaseStore, user: str, *, limit: int | None, days: float | None) -> int:
    """Delete from a user's memory what exceeds its limits: the too old, then the least useful, then the oldest.

    Args:
        store: Any LangGraph store.
        user: The user whose memory is pruned.
        limit: Maximum number of experiences, and of trajectories; None for no limit.
        days: Maximum age in days since a record was last written; None for no limit.

    Returns:
        The number of deleted records.
    """
    deletions: list[PutOp] = []
    for layer in (TRAJECTORIES, EXPERIENCES):
        space = namespace(user, layer)
        recent: list[tuple[float, datetime, str]] = []
        for item in _all(store, space):
            if days is not None and item.updated_at < datetime.now(UTC) - timedelta(days=days):
                deletions.append(PutOp(space, item.key, None))
                continue
            experience = _read(item) if layer == EXPERIENCES else None
            recent.append((experience.usefulness if experience else 0.0, item.updated_at, item.key))
        surplus = len(recent) - limit if limit is not None else 0
        deletions += [PutOp(space, key, None) for _, _, key in sorted(recent)[: max(0, surplus)]]
    runs = {op.key for op in deletions if op.namespace == namespace(user)}
    solved = namespace(user, SOLVED)
    if runs:
        deletions += [PutOp(solved, item.key, None) for item in _all(store, solved) if item.value.get("run") in runs]
    if deletions:
        store.batch(deletions)
    return len(deletions)


# --- reading --------------------------------------------------------------------------------------------------------


def recall(store: BaseStore, user: str, prompt: str, limit: int, *, generator: str | None = None) -> list[Memory]:
    """The experiences of a user that are relevant to a prompt, most relevant first; none if the store cannot search.

    Candidates are close in meaning. They are ranked by the similarity of what the prompts demand (``demands``), by how
    useful an experience has been, and by how much it differs from those ranked before. Experiences of other image
    models, whose wording helps less, only take the places that those of the current one leave free.

    Args:
        store: Any LangGraph store with an index.
        user: The user whose memory is searched.
        prompt: The current prompt.
        limit: Maximum number of experiences.
        generator: The name of the current image model; None if it does not matter.
    """
    if limit < 1:
        return []
    if generator is None:
        return _best(prompt, _similar(store, user, prompt), limit)
    own = _best(prompt, _similar(store, user, prompt, {"generator": generator}), limit)
    if len(own) == limit:
        return own
    other_models = _similar(store, user, prompt, {"generator": {"$ne": generator}})
    return own + _best(prompt, other_models, limit - len(own))


def _best(prompt: str, similar: Sequence[tuple[SearchItem, Experience]], limit: int) -> list[Memory]:
    """The most relevant of some experiences, most relevant first."""
    demands, relevance = demands_of(prompt), []
    for item, experience in similar:
        closeness = demands.closeness(demands_of(experience.prompt))
        value = (1 - _DEMANDS_WEIGHT) * (item.score or 0) + _DEMANDS_WEIGHT * closeness
        relevance.append(value * (1 + experience.usefulness))
    best = _diverse(relevance, [e.prompt for _, e in similar], limit)
    return [_memory(*similar[i], relevance[i]) for i in best]


def _similar(
    store: BaseStore, user: str, prompt: str, condition: dict[str, Any] | None = None
) -> list[tuple[SearchItem, Experience]]:
    """The experiences that meet a condition and whose prompts are close in meaning."""
    items = store.search(namespace(user, EXPERIENCES), query=prompt, filter=condition, limit=_CANDIDATES)
    pairs = [(item, _read(item)) for item in items if item.score is not None and item.score >= MIN_SIMILARITY]
    return [(item, experience) for item, experience in pairs if experience]


def _diverse(relevance: Sequence[float], prompts: Sequence[str], limit: int) -> list[int]:
    """The indices of the best prompts by maximal marginal relevance, best first."""
    words = [Counter(content_words(prompt)) for prompt in prompts]
    candidates, ranking = list(range(len(prompts))), list[int]()
    overlap = [0.0] * len(prompts)
    while candidates and len(ranking) < limit:
        best = max(candidates, key=lambda i: (1 - _DIVERSITY_WEIGHT) * relevance[i] - _DIVERSITY_WEIGHT * overlap[i])
        candidates.remove(best)
        ranking.append(best)
        for i in candidates:
            overlap[i] = max(overlap[i], jaccard(words[i], words[best]))
    return ranking


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


def past_runs(store: BaseStore, user: str) -> Iterator[tuple[str, Trajectory]]:
    """The ids and the facts of a user's runs. Records that are not runs are skipped."""
    for item in _all(store, namespace(user)):
        try:
            yield item.key, Trajectory.model_validate(item.value)
        except ValidationError:
            continue


def _all(store: BaseStore, space: tuple[str, ...]) -> Iterator[SearchItem]:
    """Every record of a namespace, read page by page."""
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
    """The experience in a record; None for other programs' records, which must not fail the run."""
    try:
        return Experience.model_validate(item.value)
    except ValidationError:
        return None
