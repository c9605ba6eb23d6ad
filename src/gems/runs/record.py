"""One run as data: what ``run.json`` holds, and the service's database."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gems import __version__
from gems.authority import without_login
from gems.errors import InputError
from gems.files import read_regular
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import Attempt, GemsState, Memory, Outcome, Requirement, Usage, best_attempt
from gems.json_text import check_texts, parse_json, strict_json
from gems.memory.embedder import embedder_fingerprint, init_embedder
from gems.models.local_weights import load_now
from gems.models.registry import init_image_generator, init_mllm, model_fingerprint
from gems.nodes.resources import check_options
from gems.options import ChatOptions
from gems.runs.operator_settings import operator_settings

__all__ = [
    "SCHEMA",
    "AttemptRecord",
    "ModelRecord",
    "RunRecord",
    "best_index",
    "load_record",
    "model_records",
    "run_record",
]

SCHEMA: Final = 1
"""The version of run.json's layout."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model's name and the fingerprint of its weights."""

    name: str
    fingerprint: str


class AttemptRecord(Attempt):
    """An attempt, with the name of its image's file in the run's folder."""

    file: str = Field(pattern=r"^round-\d+-\d+\.png$")

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """The record of an attempt."""
        return cls(**dict(attempt), file=f"round-{attempt.round}-{attempt.candidate}.png")


class RunRecord(BaseModel):
    """Everything about a run but the pixels. The order of the fields is the order of the keys in run.json."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True, hide_input_in_errors=True)

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    gems_version: str
    run_id: str | None
    """None if the run was stopped before its first step."""
    thread: str
    prompt: str
    outcome: Outcome
    score: float
    """The best attempt's score; 0 without an attempt."""
    best: int | None
    """The index of the best attempt; None without an attempt."""
    seed: int | None
    models: dict[str, ModelRecord]
    """By role: "generator", "mllm", the other roles of chat models that have a model of their own, "embedder"."""
    settings: GemsContext
    """Without what only the operator gives: addresses, keys, folders and stores."""
    operator_settings: tuple[str, ...] = ()
    """The names of the settings that are left out, and that a repetition needs again."""
    requirements: tuple[Requirement, ...]
    checks: tuple[Requirement, ...] = ()
    memories: tuple[Memory, ...]
    skills: tuple[str, ...]
    offered: dict[str, str] = {}
    """The SHA-256 of each skill that the planner was offered, by name; see ``gems.skills.snapshots``."""
    attempts: tuple[AttemptRecord, ...]
    usage: Usage
    errors: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What models had the user know; older records have such lines among their errors."""
    started_at: str
    """ISO 8601, to the second, like ``finished_at``."""
    finished_at: str

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if "generator" not in self.models:
            raise ValueError("models has no generator")
        if self.best is not None and not 0 <= self.best < len(self.attempts):
            raise ValueError(f"best is {self.best}, but there are {len(self.attempts)} attempts")
        return self

    @property
    def best_attempt(self) -> AttemptRecord | None:
        """The attempt that the run returned; None if no image was made."""
        return None if self.best is None else self.attempts[self.best]

    @property
    def all_requirements(self) -> tuple[Requirement, ...]:
        """The user's requirements, then the checks that skills add."""
        return (*self.requirements, *self.checks)

    def to_json(self) -> str:
        """The text of run.json."""
        return strict_json(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def best_index(attempts: Sequence[Attempt]) -> int | None:
    """The index of the best attempt; None if there is none."""
    best = best_attempt(attempts)
    return None if best is None else attempts.index(best)


def run_record(
    values: GemsState,
    context: GemsContext,
    models: Mapping[str, ModelRecord],
    thread: str,
    started: datetime,
    finished: datetime | None = None,
) -> RunRecord:
    """The record of a run.

    Args:
        values: The state that the run ended in.
        context: The settings of the run.
        models: The models of the run by role, see ``model_records``.
        thread: The id of the run's thread.
        started: Time at which the run started.
        finished: Time at which the run ended. The default is now.
    """
    attempts = values.get("attempts") or []
    best = best_index(attempts)
    return RunRecord(
        gems_version=__version__,
        run_id=values.get("run_id"),
        thread=thread,
        prompt=values["prompt"],
        outcome=values.get("outcome") or "cancelled",
        score=0.0 if best is None else attempts[best].score,
        best=best,
        seed=values.get("seed"),
        models=dict(models),
        settings=context,
        operator_settings=operator_settings(context),
        requirements=tuple(values.get("requirements") or ()),
        checks=tuple(values.get("checks") or ()),
        memories=tuple(values.get("memories") or ()),
        skills=tuple(values.get("skills") or ()),
        offered=values.get("offered") or {},
        attempts=tuple(map(AttemptRecord.of, attempts)),
        usage=values.get("usage") or Usage(),
        errors=tuple(values.get("errors") or ()),
        notes=tuple(values.get("notes") or ()),
        started_at=started.isoformat(timespec="seconds"),
        finished_at=(finished or datetime.now(UTC)).isoformat(timespec="seconds"),
    )


def load_record(path: Path) -> tuple[Path, RunRecord]:
    """A run's folder and its record.

    Args:
        path: The folder, or the run.json in it.

    Raises:
        InputError: There is no run.json, or it does not hold a run's record.
    """
    path = path / "run.json" if path.is_dir() else path
    try:
        content = parse_json(read_regular(path, within=path.parent))
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}); give a run's folder, such as gems-out/RUN, or its run.json"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give a run's folder or its run.json") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a run of this version of GEMS (schema {SCHEMA})")
    try:
        check_texts(content)
        return path.parent, RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is damaged ({location + ': ' if location else ''}{first['msg']})") from error
    except ValueError as error:
        raise InputError(f"{path} is not a run of this version of GEMS ({error})") from error


def _body_mark(options: ChatOptions) -> str:
    """A hash of the parameters that every request to a chat model has besides: they decide its answers.

    No record holds them themselves, since there may be a secret among them.
    """
    return f"+{hashlib.sha256(options.extra_body.encode()).hexdigest()[:16]}" if options.extra_body else ""


def model_records(context: GemsContext, *, load: bool = True) -> dict[str, ModelRecord]:
    """The models of these settings by role, for a run's record.

    Args:
        context: The settings that name the models.
        load: Load the models too, so that loading does not count as the run's time. The memory's embedder is loaded
            beside them; if all others are on servers, where the memory is read, beside the first request.

    Raises:
        InputError: A model's name is unknown, its package or API key is missing, or an option has no effect.
        BackendError: A model's weights are missing.
    """
    records: dict[str, ModelRecord] = {}
    loadable: list[object] = []
    chat_models = {"mllm": context.mllm} | {role: name for role in ROLES if (name := getattr(context, role))}
    for role in ROLES:
        if context.options_of(role).extra_body != context.chat_options.extra_body:
            chat_models[role] = context.chat_model(role)
    for role, name in chat_models.items():
        options = context.options_of(role)
        model = init_mllm(name, options, context.authority)
        records[role] = ModelRecord(without_login(name), f"{model_fingerprint(model)}{_body_mark(options)}")
        loadable.append(model)
    generator = init_image_generator(context.generator, context.generator_options, context.authority)
    if load:
        check_options(context)
    records["generator"] = ModelRecord(without_login(context.generator), generator.fingerprint)
    loadable.append(generator)
    embedder = init_embedder(context.embedder) if context.memory else None
    if embedder is not None:
        records["embedder"] = ModelRecord(context.embedder, embedder_fingerprint(embedder))
    if load:
        # Beside models on servers it would hold up their first request; the memory's node loads it beside the answer.
        if embedder is not None and any(hasattr(part, "load") for part in loadable):
            Thread(target=_load_early, args=(embedder,), name="gems-embedder").start()
        for part in loadable:
            load_now(part)
    return records


def _load_early(part: object) -> None:
    """Load a part before it is needed. What it raises, it raises again where it is needed."""
    with suppress(Exception):
        load_now(part)
