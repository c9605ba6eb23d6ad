"""What a checkpoint must be before LangGraph reads it: a database of checkpoints may be somebody else's."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from typing import Annotated, Any, Final, NotRequired, TypeAlias, cast
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.constants import TASKS
from langgraph.types import Overwrite, Send
from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from gems.errors import InputError
from gems.graph.budget import MAX_PROMPTS
from gems.graph.state import Assignment, GemsState
from gems.json_text import check_texts, first_fault
from gems.secrets import one_line

__all__ = ["CheckedSaver"]

_Versions: TypeAlias = dict[str, str] | dict[str, int | float]


def _uuid(text: str) -> str:
    UUID(text)
    return text


class _Checkpoint(TypedDict):
    """What LangGraph relies on."""

    v: int
    id: Annotated[str, AfterValidator(_uuid)]
    ts: str
    channel_values: dict[str, Any]
    channel_versions: _Versions
    versions_seen: dict[str, _Versions]
    updated_channels: NotRequired[list[str] | None]


class _Saved(TypedDict):
    checkpoint: _Checkpoint
    metadata: dict[str, Any]
    pending_writes: list[tuple[str, str, Any]] | None


_SAVED: Final = TypeAdapter(_Saved)
_MESSAGES: Final = frozenset({"planning", "messages"})
"""Channels whose values LangChain checks itself."""
_DRAWING: Final = ("generator", "editor")
"""The nodes that tasks are sent to."""


class CheckedSaver(BaseCheckpointSaver[Any]):
    """A mixin for a checkpointer: a fault of a checkpoint is one line that names the file and the thread."""

    place: str = "the database of checkpoints"
    remedy: str = "start another run"

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See ``BaseCheckpointSaver``.

        Raises:
            InputError: The thread has a checkpoint that this program did not write.
        """
        with self._faults_named(config):
            saved = super().get_tuple(config)
            if saved is not None:
                _check(saved)
        return saved

    def list(self, config: RunnableConfig | None, **options: Any) -> Iterator[CheckpointTuple]:
        """See ``BaseCheckpointSaver`` and ``get_tuple``."""
        with closing(cast(Generator[CheckpointTuple, None, None], super().list(config, **options))) as tuples:
            while True:
                with self._faults_named(config):
                    saved = next(tuples, None)
                    if saved is not None:
                        _check(saved)
                if saved is None:
                    return
                yield saved

    @contextmanager
    def _faults_named(self, config: RunnableConfig | None) -> Iterator[None]:
        try:
            yield
        except ValidationError as error:
            reason = first_fault(error)
        except InputError as error:
            reason = str(error)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
        else:
            return
        thread = ((config or {}).get("configurable") or {}).get("thread_id", "")
        raise InputError(f"{self.place} holds no usable checkpoint of {thread!r} ({reason}); {self.remedy}")


def _check(saved: CheckpointTuple) -> None:
    _SAVED.validate_python(
        {"checkpoint": saved.checkpoint, "metadata": saved.metadata, "pending_writes": saved.pending_writes},
        strict=True,
    )
    values, writes = saved.checkpoint["channel_values"], saved.pending_writes or ()
    _check_state(values)
    for _, channel, value in writes:
        _check_state({channel: value.value if isinstance(value, Overwrite) else value})
    _check_sent(values.get(TASKS) or ())
    _check_sent([value for _, channel, value in writes if channel == TASKS])


def _check_state(values: Mapping[str, Any]) -> None:
    """Check the values of the state. LangGraph builds a model of ours from any fields, so these are checked again."""
    channels = {name: value for name, value in values.items() if name in GemsState.__annotations__}
    _check_fields(_state(), channels)


def _check_sent(tasks: Sequence[Any]) -> None:
    """Check what tasks are sent: a proposal of the round each, and no more of them than a round has."""
    places = set[int]()
    for task in tasks:
        if not isinstance(task, Send) or task.node not in _DRAWING or not isinstance(task.arg, dict):
            raise TypeError("a task is sent what GEMS sends none")
        _check_fields(_assignment(), task.arg)
        place, count = task.arg["place"], task.arg["places"]
        if not 0 <= place < count <= MAX_PROMPTS or place in places:
            raise ValueError(f"a task is sent proposal {place} of {count}, which is none or another's")
        places.add(place)


def _check_fields(fields: TypeAdapter[Any], values: Mapping[str, Any]) -> None:
    if fields.validate_python(values, strict=True) != values:  # pydantic makes a model of a mapping
        raise TypeError("a value has another type")
    plain = {name: value for name, value in values.items() if name not in _MESSAGES}
    content = fields.dump_python(plain, warnings=False)
    check_texts(content)
    fields.validate_python(content)


@cache
def _state() -> TypeAdapter[GemsState]:
    return TypeAdapter(GemsState)


@cache
def _assignment() -> TypeAdapter[Assignment]:
    return TypeAdapter(Assignment)
