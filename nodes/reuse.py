"""Reuse of an earlier run's image, if that run solved the same prompt with the same models and settings."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from importlib.util import find_spec
from typing import Final

from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore, Item
from langgraph.types import Overwrite
from pydantic import ValidationError

from gems.errors import BackendError, InputError
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import Attempt, GemsState, Proposal
from gems.memory.solved_notes import is_own_note, solved_note
from gems.memory.trajectory import SOLVED, Trajectory, namespace
from gems.models.registry import model_fingerprint
from gems.nodes.resources import Resources
from gems.nodes.retry import describe

__all__ = ["note_begun", "note_solved", "solved_before"]

_IRRELEVANT_SETTINGS: Final = {
    "user",
    "memory",
    "memories",
    "memory_tokens",
    "reuse",
    "budget",
}
"""Settings that do not change what an image should look like."""
_MOST_BEGUN: Final = 10_000
_runs_begun_here = OrderedDict[str, None]()
"""The latest runs that began in this process. Of another one, nobody knows who wrote its checkpoint: whoever has the
file can exchange its images, verdicts and questions, and this machine's signature would stand under them."""
_lock = threading.Lock()


def solved_before(resources: Resources, context: GemsContext, runtime: Runtime[GemsContext], prompt: str) -> GemsState:
    """The state of an earlier run that solved the prompt, with its best image as the only attempt; empty without one.

    If the memory cannot be read, the run draws an image of its own.
    """
    try:
        earlier_run = _find_run(resources, context, runtime, prompt)
        if earlier_run is None:
            return GemsState()
        trajectory = Trajectory.model_validate(earlier_run.value)
        attempt = _passed_attempt(trajectory)
        if attempt is None:
            return GemsState()
        resources.images(context).read(attempt.image, check_exists=True)
    except (ValidationError, KeyError, BackendError):  # the record holds no run, or its image is gone
        return GemsState()
    except Exception as error:
        return GemsState(errors=Overwrite([describe(error, "reuse")]))  # type: ignore[typeddict-item]
    runtime.stream_writer({"event": "reuse", "run": earlier_run.key})
    return GemsState(
        requirements=trajectory.requirements,
        proposals=[Proposal(prompt=attempt.prompt, strategy="reuse")],
        attempts=Overwrite([attempt]),  # type: ignore[typeddict-item]
        image=attempt.image,
        score=attempt.score,
        outcome="solved",
    )


def _find_run(resources: Resources, context: GemsContext, runtime: Runtime[GemsContext], prompt: str) -> Item | None:
    """The record of the run that was noted as having solved the prompt."""
    store = resources.memory(context, runtime)
    if store is None:
        return None
    place, key = namespace(context.user, SOLVED), _key(resources, context, prompt)
    note = store.get(place, key)
    run = store.get(namespace(context.user), str(note.value["run"])) if note else None
    return run if note and run and is_own_note(place, key, note.value, run.value) else None


def note_begun(run_id: str) -> None:
    """Note that a run begins in this process."""
    with _lock:
        _runs_begun_here[run_id] = None
        if len(_runs_begun_here) > _MOST_BEGUN:
            _runs_begun_here.popitem(last=False)


def note_solved(
    store: BaseStore, resources: Resources, context: GemsContext, prompt: str, run_id: str, trajectory: Trajectory
) -> None:
    """Note that this run has solved a prompt, and what was remembered of it, if all of the run was done here."""
    if run_id not in _runs_begun_here:
        return
    place, key = namespace(context.user, SOLVED), _key(resources, context, prompt)
    with suppress(InputError):  # no secret can be kept; `solved_before` says so
        store.put(place, key, solved_note(place, key, run_id, trajectory.model_dump(mode="json")), index=False)


def _key(resources: Resources, context: GemsContext, prompt: str) -> str:
    """A hash of everything that decides what image a prompt gets."""
    generator = resources.generator(context)
    models = [model_fingerprint(resources.chat(context, role)) for role in ROLES]
    settings = context.model_dump(mode="json", exclude=_IRRELEVANT_SETTINGS)
    # Settings name these without containing them: skills change in their folder, tools come and go, servers move.
    surroundings = [
        sorted((skill.name, skill.description, skill.body) for skill in resources.skills(context).skills.values()),
        [inspector.name for inspector in resources.own_inspectors],
        find_spec("rapidocr") is not None,
        [context.options_of(role).base_url or os.environ.get("OPENAI_BASE_URL") for role in ROLES],
        [context.options_of(role).extra_body for role in ROLES],
    ]
    identity = [prompt, generator.name, generator.fingerprint, *models, settings, surroundings]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _passed_attempt(trajectory: Trajectory) -> Attempt | None:
    """The attempt that the run returned, if it passed every requirement, as the first one of a new run."""
    attempts, best = trajectory.attempts, trajectory.best
    for attempt in attempts if best is None else attempts[best : best + 1]:  # older records do not name it
        if attempt.verdicts and all(verdict.answer == "yes" for verdict in attempt.verdicts):
            return Attempt(
                round=1,
                candidate=0,
                strategy="reuse",
                prompt=attempt.prompt,
                negative_prompt=attempt.negative_prompt,
                seed=attempt.seed,
                image=attempt.image,
                edited_from=attempt.edited_from,
                verdicts=tuple(attempt.verdicts),
                score=attempt.score,
                quality=attempt.quality,
                flaws=attempt.flaws,
            )
    return None
