"""An earlier run's image, where that run solved just this prompt with the same models and settings."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.util import find_spec
from typing import Final

from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.types import Overwrite
from pydantic import ValidationError

from gems.errors import BackendError
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import Attempt, GemsState
from gems.memory.trajectory import SOLVED, Trajectory, namespace
from gems.models.registry import model_fingerprint
from gems.nodes.resources import Resources
from gems.nodes.retry import describe

__all__ = ["note_solved", "solved_before"]

_NO_MATTER: Final = {"user", "memory", "memories", "memory_tokens", "memory_limit", "memory_days", "memory_url"} | {
    "images_url",
    "reuse",
    "budget",
}
"""Settings that say nothing of what an image should be."""


def solved_before(resources: Resources, context: GemsContext, runtime: Runtime[GemsContext], prompt: str) -> GemsState:
    """The solved state of such a run, with its best image as the only attempt; empty if there is none.

    A memory that cannot be read costs its help, never the run.
    """
    try:
        store = resources.memory(context, runtime)
        found = store.get(namespace(context.user, SOLVED), _wish(resources, context, prompt)) if store else None
        past = store.get(namespace(context.user), found.value["run"]) if store and found else None
        attempt = _attempt(Trajectory.model_validate(past.value)) if past else None
        if past is None or attempt is None:
            return GemsState()
        resources.images(context).read(attempt.image, check_exists=True)
    except (ValidationError, KeyError, BackendError):  # what is written there is no run, or its image is gone
        return GemsState()
    except Exception as error:
        return GemsState(errors=Overwrite([describe(error, "reuse")]))  # type: ignore[typeddict-item]
    runtime.stream_writer({"event": "reuse", "run": past.key})
    return GemsState(
        requirements=Trajectory.model_validate(past.value).requirements,
        draft=attempt.prompt,
        strategy="reuse",
        attempts=[attempt],
        image=attempt.image,
        score=attempt.score,
        outcome="solved",
    )


def note_solved(store: BaseStore, resources: Resources, context: GemsContext, prompt: str, run_id: str) -> None:
    """Say that this run has solved a prompt."""
    key = _wish(resources, context, prompt)
    store.put(namespace(context.user, SOLVED), key, {"run": run_id}, index=False)


def _wish(resources: Resources, context: GemsContext, prompt: str) -> str:
    generator = resources.generator(context)
    models = [model_fingerprint(resources.chat(context, role)) for role in ROLES]
    settings = context.model_dump(mode="json", exclude=_NO_MATTER)
    # What the settings name, but do not hold: skills change in their folder, tools come and go, servers move.
    around = [
        sorted((skill.name, skill.description, skill.body) for skill in resources.skills(context).skills.values()),
        [inspector.name for inspector in resources.own_inspectors],
        find_spec("rapidocr") is not None,
        os.environ.get("OPENAI_BASE_URL"),
    ]
    asked = [prompt, generator.name, generator.fingerprint, *models, settings, around]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _attempt(past: Trajectory) -> Attempt | None:
    """The attempt that passed."""
    for attempt in past.attempts:
        if attempt.verdicts and all(verdict.answer == "yes" for verdict in attempt.verdicts):
            return Attempt(
                round=1,
                candidate=0,
                strategy="reuse",
                prompt=attempt.prompt,
                seed=attempt.seed,
                image=attempt.image,
                verdicts=tuple(attempt.verdicts),
                score=attempt.score,
            )
    return None
