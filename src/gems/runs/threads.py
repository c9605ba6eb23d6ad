"""Threads: what a run was started with, on disk, so that it can be resumed after its process has died."""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore
from langgraph.types import Command, StateSnapshot, StreamMode
from pydantic import TypeAdapter

from gems.database import database_pool, setup_lock, without_password
from gems.errors import BackendError, InputError
from gems.files import read_regular, write_atomically
from gems.graph.builder import GemsGraph
from gems.graph.context import GemsContext
from gems.graph.events import Event, PromptEvent, RequirementFields, RequirementsEvent
from gems.graph.routing import images_of_round
from gems.graph.state import GemsInput, GemsState, proposals_of, round_of
from gems.json_text import check_texts, parse_json, strict_json
from gems.memory.image_store import open_images
from gems.memory.opening import database_of, memory_location
from gems.nodes.runnables import heard_by
from gems.paths import home, private_folder
from gems.runs.folder import make_folder
from gems.runs.operator_settings import operator_settings
from gems.runs.record import ModelRecord, model_records
from gems.secrets import one_line
from gems.skills.loader import load_skills
from gems.wording import check_prompt

__all__ = [
    "Listener",
    "Thread",
    "begin_thread",
    "can_be_reopened",
    "check_models",
    "finished_at",
    "has_begun",
    "has_ended",
    "load_thread",
    "location_mark",
    "memory_mark",
    "pending_review",
    "reopen_failed",
    "reopen_limited",
    "run_thread",
]

Listener: TypeAlias = Callable[[Event], None]
"""Called with each custom event of the graph."""

_MODELS: Final = TypeAdapter(dict[str, ModelRecord])
_THREADS: Final = ("gems", "threads")
"""The namespace of threads in a database."""


@dataclass(frozen=True, slots=True)
class Thread:
    """What a run was started with."""

    id: str
    prompt: str
    context: GemsContext
    out: Path
    started: datetime
    models: dict[str, ModelRecord]
    """The run's models, by role. Other weights would make another run."""
    operator_settings: tuple[str, ...] = ()
    """The settings that the operator has to give again to resume the run: no file grants them."""
    memory_mark: str = ""
    """Identifies the memory without naming it, see ``memory_mark``."""
    out_mark: str = ""
    """Identifies the folder ``out`` without naming it."""

    def save(self, database: str | None = None) -> None:
        """Write the thread to this machine's disk and, if there is a database, there too for other machines.

        Raises:
            InputError: The home folder cannot be written to, or the database refused the connection.
            BackendError: The database cannot be reached.
        """
        fields = {
            "prompt": self.prompt,
            "context": self.context.model_dump(mode="json"),
            "started": self.started.isoformat(),
            "models": {role: asdict(model) for role, model in self.models.items()},
            "operator_settings": list(self.operator_settings),
            "memory_mark": self.memory_mark,
            "out_mark": self.out_mark,
        }
        path = _thread_file(self.id)
        if database:
            with _database_records(database) as store:
                store.put(_THREADS, self.id, fields, index=False)
        try:
            private_folder(path.parent)
            write_atomically(path, strict_json(fields, indent=2).encode())
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror}); set GEMS_HOME to a writable folder with free space"
            ) from error


def begin_thread(prompt: str, context: GemsContext, out: Path) -> Thread:
    """Check what a run needs, load its models, and save its thread. The run can be resumed from then on.

    Args:
        prompt: The user's prompt.
        context: The run's settings.
        out: The folder in which the run's own folder will be made.

    Raises:
        InputError: The prompt, a setting, the folder or the image store cannot be used.
        BackendError: A model cannot be loaded, or the database cannot be reached.
    """
    # The prompt comes first: a bad one is refused before any model is loaded.
    prompt = check_prompt(prompt)
    load_skills(context.skills_dir, builtin=context.builtin_skills)
    make_folder(out)
    open_images(context.images_url)  # raises an InputError if images cannot be stored there
    models = model_records(context)
    thread = Thread(
        _new_thread_id(prompt),
        prompt,
        context,
        out,
        datetime.now(UTC),
        models,
        operator_settings(context),
        memory_mark(context),
        location_mark(out.absolute()),
    )
    thread.save(database_of(context))
    return thread


def memory_mark(context: GemsContext) -> str:
    """A hash of the memory's location, by which a resumed run can be told that its memory is another one."""
    location = memory_location(context) if context.memory else None
    return location_mark(without_password(location or ""))


def location_mark(location: Path | str) -> str:
    """A short hash of a location: a file can say which one it was without granting it."""
    return hashlib.sha256(str(location).encode()).hexdigest()[:16]


def _new_thread_id(prompt: str) -> str:
    """A recognisable name: the prompt's first words and six random characters."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
    return f"{slug or 'run'}-{uuid.uuid4().hex[:6]}"


def load_thread(thread: str, database: str | None = None) -> Thread:
    """The thread with this id, from this machine's disk or else from the database.

    Raises:
        InputError: There is no such thread, its file is damaged, or the database refused the connection.
        BackendError: The database cannot be reached.
    """
    path = _thread_file(thread)
    place = str(path)
    try:
        fields = None
        if database and not path.exists():
            place = f"the record of {thread} in the database"
            fields = _thread_in_database(thread, database)
        if fields is None:
            fields = parse_json(read_regular(path, within=path.parent))
        check_texts(fields)
        return Thread(
            thread,
            check_prompt(fields["prompt"]),
            GemsContext.model_validate(fields["context"]),
            Path("gems-out"),
            datetime.fromisoformat(fields["started"]),
            _models(fields["models"]),
            tuple(map(str, fields.get("operator_settings", ()))),
            str(fields.get("memory_mark", "")),
            str(fields.get("out_mark", "")),
        )
    except FileNotFoundError as error:
        raise InputError(f"there is no run {thread!r} to resume; 'gems generate' prints each run's name") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place} is damaged ({one_line(error)}); the run cannot be resumed") from error


def _models(content: object) -> dict[str, ModelRecord]:
    models = _MODELS.validate_python(content)
    if missing_roles := {"generator", "mllm"} - models.keys():
        raise ValueError(f"models has no {min(missing_roles)}")
    return models


def _thread_in_database(thread: str, database: str) -> dict[str, Any] | None:
    with _database_records(database) as store:
        item = store.get(_THREADS, thread)
    # The output folder was one of another machine.
    return {**item.value, "out_mark": ""} if item else None


def _thread_file(thread: str) -> Path:
    if not re.fullmatch(r"[a-z0-9-]{1,80}", thread):
        raise InputError(f"{thread!r} is not a run's name; 'gems generate' prints each run's name")
    return home() / "threads" / f"{thread}.json"


@contextmanager
def _database_records(database: str) -> Iterator[BaseStore]:
    """A store in a PostgreSQL database, without vector search."""
    with database_pool(database) as pool:
        import psycopg
        from langgraph.store.postgres import PostgresStore

        try:
            with pool.connection() as connection, setup_lock(connection):
                PostgresStore(connection).setup()
            yield PostgresStore(pool)
        except psycopg.Error as error:
            raise BackendError(f"cannot use the PostgreSQL database: {one_line(error)}", retryable=False) from None


def has_begun(graph: GemsGraph, thread: str) -> bool:
    """Whether a thread has a checkpoint."""
    return graph.get_state(_config(thread)).created_at is not None


def has_ended(graph: GemsGraph, thread: str) -> bool:
    """Whether a thread ran to its end, so that there is nothing to resume.

    A thread that bad input or a bug ended has no outcome and no task: it counts as not ended.
    """
    # Not ``next``: a kill between a task's end and its step's end leaves a task that ``next`` does not list.
    snapshot = graph.get_state(_config(thread))
    return bool(snapshot.values.get("outcome")) and not snapshot.tasks


def check_models(thread: Thread) -> None:
    """Check that the models still have the weights that the thread was started with, and then load them.

    Raises:
        InputError: One has other weights.
    """
    current = model_records(thread.context, load=False)
    for role, original in thread.models.items():
        if role not in current or current[role] != original:
            fingerprint = _in_short(current[role].fingerprint) if role in current else "not in its settings"
            raise InputError(
                f"run {thread.id} was started with the {role} {original.name} {_in_short(original.fingerprint)}, which "
                f"is now {fingerprint}: other weights would make another run, and so would another extra_body; start a "
                "new one"
            )
    model_records(thread.context)


def _in_short(fingerprint: str) -> str:
    """The beginning of a fingerprint, and of the hash of what every request has besides."""
    weights, plus, more = fingerprint.partition("+")
    return f"{weights[:12]}{plus}{more[:12]}"


def finished_at(graph: GemsGraph, thread: str) -> datetime:
    """When a thread's last checkpoint was written; now if it has none."""
    created_at = graph.get_state(_config(thread)).created_at
    return datetime.fromisoformat(created_at) if created_at else datetime.now(UTC)


def run_thread(
    graph: GemsGraph,
    thread: str,
    prompt: str,
    context: GemsContext,
    *,
    listener: Listener | None = None,
    listens_anywhere: bool = False,
    control: RunControl | None = None,
    answer: Mapping[str, Any] | None = None,
) -> GemsState:
    """Run a thread from its last checkpoint to its end, or until ``control`` stops it after a step.

    Args:
        graph: A graph with a checkpointer.
        thread: The thread's id.
        prompt: The prompt, for a thread that has not begun.
        context: The run's settings.
        listener: Called with each event.
        listens_anywhere: Whether the listener may be called in any thread, in several at once. That is sooner.
        control: Stops the run when it is asked to drain.
        answer: A person's review, for a thread that waits for one.

    Returns:
        The state that the thread stopped in. A thread that has ended is not run again.
    """
    config = _config(thread)
    logging.getLogger("concurrent.futures").addFilter(_is_news)
    if not has_ended(graph, thread):
        snapshot = graph.get_state(config)
        is_corrected = _is_corrected(snapshot, prompt)
        if not is_corrected and _reopen_broken(graph, snapshot):
            snapshot = graph.get_state(config)
        goes_on = snapshot.tasks and not is_corrected
        graph_input: Command[Any] | GemsInput | None = None if goes_on else GemsInput(prompt=prompt)
        if answer is not None and snapshot.interrupts:
            graph_input = Command(resume=dict(answer))
        if goes_on and listener is not None:
            _repeat_events(snapshot.values, listener)
        # The stop is requested by ``control``; the state shows how far the run came.
        modes: list[StreamMode] = [] if listens_anywhere else ["custom"]
        with suppress(GraphDrained), heard_by(listener if listens_anywhere else None):
            for _, event in graph.stream(
                graph_input, config, context=context, stream_mode=modes, durability="sync", control=control
            ):
                if listener is not None:
                    listener(cast(Event, event))
    # A run that was stopped before its first step has no prompt in its state.
    return cast(GemsState, {"prompt": prompt, **graph.get_state(config).values})


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of Python's thread pools says something new.

    A node that ends just after one beside it has failed finds LangGraph's pool shut; the run's own error is told.
    """
    error = record.exc_info[1] if record.exc_info else None
    return "after shutdown" not in str(error)


def can_be_reopened(values: GemsState, context: GemsContext) -> bool:
    """Whether a model or server has ended a run, so that the step that failed may succeed at another time.

    A provider that has refused every draft of a prompt refuses them again.
    """
    is_refused = not values.get("attempts") and len(values.get("refused") or ()) >= context.max_rounds
    return values.get("outcome") == "failed" and not is_refused


def reopen_failed(graph: GemsGraph, thread: str) -> None:
    """Take a thread that a backend failure has ended back to the step that failed; what it has spent stays counted.

    The images that were drawn before that step are kept, and so is what the planner was told beside a decomposer that
    failed.
    """
    final = graph.get_state(_config(thread))
    before = _before_end(graph, thread)
    if before is None:
        return
    more: dict[str, Any] = {"usage": final.values["usage"].since(before.values["usage"])}
    # In checkpoints of older versions, the draft stands elsewhere.
    if "decomposer" in before.next and final.values.get("planning") and "proposals" in final.values:
        more |= _planned(final.values, len(before.values["errors"]))
    graph.update_state(before.config, more, as_node=_PREDECESSORS[before.next[0]])


def _planned(values: Mapping[str, Any], first_error: int) -> dict[str, Any]:
    """What memory and the planner have made of a run at whose end this was the state, for the reopened one.

    A planner that had failed, too, goes on with the skills that it has read; the draft in place of its own is not kept.

    Args:
        values: The state.
        first_error: The place of the first error that they may have written.
    """
    reading = {key: values[key] for key in ("planning", "offered", "skills", "checks")}
    if not isinstance(values["planning"][-1], AIMessage):
        return reading
    errors = [error for error in values["errors"][first_error:] if error.startswith(("retrieve_memory:", "planner:"))]
    draft = {key: values[key] for key in ("memories", "proposals", "parts")}
    return {**reading, **draft, "compared": False, "errors": errors}


def _is_corrected(snapshot: StateSnapshot, prompt: str) -> bool:
    """Whether a thread that an error has ended, such as an unknown word, has been given another prompt since."""
    is_broken = not snapshot.tasks or any(task.error for task in snapshot.tasks)
    return is_broken and snapshot.values.get("prompt", prompt) not in (prompt, check_prompt(prompt))


def _reopen_broken(graph: GemsGraph, final: StateSnapshot) -> bool:
    """Take some threads that an error of nobody's server has ended back to the step that raised it. Returns whether.

    The step is done again, with all that was paid for before it. Most threads need nothing: the step's error handler
    sees to it. The decomposer is done beside the memory again, which costs nothing: if it raised again beside the
    planner, the planner's answer could be lost. Earlier versions have left threads without a task.
    """
    errors = {task.name: task.error for task in final.tasks}
    is_beside_memory = "retrieve_memory" in errors and not errors["retrieve_memory"] and errors.get("decomposer")
    before: StateSnapshot | None = final if is_beside_memory else None
    if not final.tasks and (run_id := final.values.get("run_id")):
        history = graph.get_state_history(_config(final.config["configurable"]["thread_id"]))
        before = next((s for s in history if s.next and s.values.get("run_id") == run_id), None)
        before = before if before is not None and _HANDLED & set(before.next) else None
    if before is None:
        return False
    graph.update_state(before.config, None, as_node=_PREDECESSORS[before.next[0]])
    return True


def reopen_limited(graph: GemsGraph, thread: str) -> None:
    """Let a thread go on that its budget has ended, once it has a larger one. Nothing is done twice."""
    before = _before_end(graph, thread)
    if before is None:
        return
    last = next(iter(reversed(graph.get_state(_config(thread)).values["attempts"])), None)
    # A verifier that has finished its work is not run again: the thread goes on behind it.
    is_verified = before.next[0] == "verifier" and last is not None and last.verified
    node = "verifier" if is_verified else _PREDECESSORS[before.next[0]]
    graph.update_state(_config(thread), {"outcome": None}, as_node=node)


_PREDECESSORS: Final = {
    "intake": "__start__",
    "retrieve_memory": "intake",
    "decomposer": "intake",
    "planner": "retrieve_memory",
    "cross_check": "decomposer",
    "generator": "cross_check",
    "editor": "refiner",
    "verifier": "generator",
    "refiner": "verifier",
}
"""The node behind which a thread goes on with a node."""
_HANDLED: Final = _PREDECESSORS.keys() - {"intake", "cross_check"}
"""Those of them that have an error handler."""


def _before_end(graph: GemsGraph, thread: str) -> StateSnapshot | None:
    """A thread's latest state in which nothing had ended it yet; None if it has not ended."""
    if not has_ended(graph, thread):
        return None
    history = graph.get_state_history(_config(thread))
    return next((s for s in history if s.next and s.values.get("run_id") and not _is_over(s)), None)


def _is_over(snapshot: StateSnapshot) -> bool:
    """Whether a run has ended, or its next step ends it since nothing was drawn."""
    state = cast(GemsState, snapshot.values)
    is_undrawn = snapshot.next[0] == "verifier" and state.get("undrawn") and not images_of_round(state)
    return bool(state.get("outcome") or is_undrawn)


def pending_review(graph: GemsGraph, thread: str) -> dict[str, Any] | None:
    """The question to a person, if a thread waits for an answer."""
    interrupts = graph.get_state(_config(thread)).interrupts
    return dict(interrupts[0].value) if interrupts else None


def _config(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


def _repeat_events(values: Mapping[str, Any], listener: Listener) -> None:
    """Repeat the events that a listener needs to follow a run that is resumed."""
    if requirements := values.get("requirements"):
        fields = [cast(RequirementFields, requirement.model_dump()) for requirement in requirements]
        listener(RequirementsEvent(event="requirements", requirements=fields, notes=values.get("notes") or []))
    state = cast(GemsState, values)
    for place, proposal in enumerate(proposals_of(state)):
        listener(
            PromptEvent(
                event="prompt",
                round=round_of(state),
                proposal=place,
                strategy=proposal.strategy,
                prompt=proposal.prompt,
            )
        )
