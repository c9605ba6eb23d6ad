"""Runs on disk: checkpoints, the settings a killed run needs to go on, and the models it used."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore
from langgraph.types import Command

from gems.database import database_pool, setup_lock
from gems.errors import BackendError, InputError
from gems.files import write_atomically
from gems.graph.builder import GemsGraph
from gems.graph.context import GemsContext
from gems.graph.state import GemsInput, GemsState
from gems.paths import home
from gems.runs.record import ModelRecord, model_records
from gems.secrets import one_line

__all__ = [
    "Listener",
    "Thread",
    "check_models",
    "finished_at",
    "has_begun",
    "has_ended",
    "load_thread",
    "new_thread_id",
    "pending_review",
    "run_thread",
]


_THREADS: Final = ("gems", "threads")


@dataclass(frozen=True, slots=True)
class Thread:
    """What a run was asked for: enough to go on with it after the process died."""

    id: str
    prompt: str
    context: GemsContext
    out: Path
    started: datetime
    models: dict[str, ModelRecord]
    """What it was begun with; other weights would make another run."""

    def save(self, database: str | None = None) -> None:
        """Write it down, before the first step; in the database too, if there is one, for other machines.

        Raises:
            InputError: The home folder has no room for it, or the database does not let us in.
            BackendError: The database cannot be reached.
        """
        record = {
            "prompt": self.prompt,
            "context": self.context.model_dump(mode="json"),
            "out": str(self.out.absolute()),
            "started": self.started.isoformat(),
            "models": {role: asdict(model) for role, model in self.models.items()},
        }
        path = _thread_file(self.id)
        if database:
            with _records(database) as store:
                store.put(_THREADS, self.id, record, index=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(record, indent=2).encode())
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror}); set GEMS_HOME to a writable folder with room"
            ) from error


def new_thread_id(prompt: str) -> str:
    """A name that a person recognises: the prompt's first words and six random characters."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
    return f"{slug or 'run'}-{uuid.uuid4().hex[:6]}"


def load_thread(thread: str, database: str | None = None) -> Thread:
    """The run of that name: of this machine, or of another that keeps its checkpoints in the same database.

    Raises:
        InputError: There is none, or the database does not let us in.
        BackendError: The database cannot be reached.
    """
    path = _thread_file(thread)
    try:
        if database and not path.exists():
            with _records(database) as store:
                item = store.get(_THREADS, thread)
            # Folders are the other machine's.
            record = {**item.value, "out": "gems-out"} if item else json.loads(path.read_text(encoding="utf-8"))
        else:
            record = json.loads(path.read_text(encoding="utf-8"))
        return Thread(
            thread,
            record["prompt"],
            GemsContext.model_validate(record["context"]),
            Path(record["out"]),
            datetime.fromisoformat(record["started"]),
            {role: ModelRecord(**model) for role, model in record["models"].items()},
        )
    except FileNotFoundError as error:
        raise InputError(f"there is no run {thread!r} to resume; 'gems generate' prints each run's name") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); the run cannot be resumed") from error


def _thread_file(thread: str) -> Path:
    if not re.fullmatch(r"[a-z0-9-]{1,80}", thread):
        raise InputError(f"{thread!r} is no name of a run; 'gems generate' prints each run's name")
    return home() / "threads" / f"{thread}.json"


@contextmanager
def _records(database: str) -> Iterator[BaseStore]:
    """The records of a database, without a search."""
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
    """Whether there is a checkpoint of a thread."""
    return graph.get_state({"configurable": {"thread_id": thread}}).created_at is not None


def has_ended(graph: GemsGraph, thread: str) -> bool:
    """Whether a thread ran to its end, so that there is nothing to go on with.

    A thread that bad input ended has no outcome, and nothing to do either: it is begun again.
    """
    # Not ``next``: it leaves out tasks that are done but whose step is not, as a kill between the two leaves them.
    snapshot = graph.get_state({"configurable": {"thread_id": thread}})
    return bool(snapshot.values.get("outcome")) and not snapshot.tasks


def check_models(thread: Thread) -> None:
    """Be sure that a run goes on with the models that it was begun with.

    Raises:
        InputError: The models at hand have other weights.
    """
    here = model_records(thread.context)
    for role, begun_with in thread.models.items():
        if here[role] != begun_with:
            raise InputError(
                f"run {thread.id} was begun with the {role} {begun_with.name} {begun_with.fingerprint[:12]}, here is "
                f"{here[role].fingerprint[:12]}: other weights would make another run; start a new one"
            )


def finished_at(graph: GemsGraph, thread: str) -> datetime:
    """When a thread's last step was written down; now if it has none."""
    written = graph.get_state({"configurable": {"thread_id": thread}}).created_at
    return datetime.fromisoformat(written) if written else datetime.now(UTC)


def run_thread(
    graph: GemsGraph,
    thread: str,
    prompt: str,
    context: GemsContext,
    *,
    listener: Listener | None = None,
    control: RunControl | None = None,
    answer: Mapping[str, Any] | None = None,
) -> GemsState:
    """Run a thread from wherever it stands to its end, or to the next step's end once ``control`` asks for a stop.

    Args:
        graph: With a checkpointer.
        thread: Its id.
        prompt: What a thread that has not begun is begun with.
        context: Settings.
        listener: Hears what happens.
        control: Asks for a stop.
        answer: A person's review, if the thread waits for one.

    Returns:
        The state it ended in. A thread that had ended before is not run again.
    """
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    if not has_ended(graph, thread):
        before = graph.get_state(config)
        given: Command[Any] | GemsInput | None = None if before.tasks else GemsInput(prompt=prompt)
        if answer is not None and before.interrupts:
            given = Command(resume=dict(answer))
        if before.tasks and listener is not None:
            _tell_again(before.values, listener)
        try:
            for event in graph.stream(
                given, config, context=context, stream_mode="custom", durability="sync", control=control
            ):
                if listener is not None:
                    listener(event)
        except GraphDrained:
            pass  # asked for: the state at hand says how far it came
    # A run that was stopped before its first step has no prompt in its state yet.
    return cast(GemsState, {"prompt": prompt, **graph.get_state(config).values})


def pending_review(graph: GemsGraph, thread: str) -> dict[str, Any] | None:
    """What a person is asked, if a thread waits for one."""
    interrupts = graph.get_state({"configurable": {"thread_id": thread}}).interrupts
    return dict(interrupts[0].value) if interrupts else None


def _tell_again(values: dict[str, Any], listener: Listener) -> None:
    """What a listener has to have heard to follow a run from its middle on."""
    if values.get("requirements"):
        listener({"event": "requirements", "requirements": [r.model_dump() for r in values["requirements"]]})
    attempts = values.get("attempts") or []
    if values.get("draft"):
        round_ = attempts[-1].round + bool(attempts[-1].verified) if attempts else 1
        listener({"event": "prompt", "round": round_, "strategy": values["strategy"], "prompt": values["draft"]})


Listener: TypeAlias = Callable[[dict[str, Any]], None]
"""Takes one custom event of the graph."""
