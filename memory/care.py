"""Looking after a memory folder: what is in it, taking it elsewhere, forgetting, and whether it is whole."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
from langgraph.store.base import PutOp
from pydantic import BaseModel, Field, ValidationError

from gems.graph.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.memory.images import ImageStore
from gems.memory.index import VectorIndex, newest, open_index
from gems.memory.records import Records, Row
from gems.memory.store import FaissStore, open_records
from gems.memory.trajectory import TRAJECTORIES, Trajectory, namespace, user_of

__all__ = [
    "Line",
    "Past",
    "Stats",
    "Wish",
    "existing",
    "export_lines",
    "find",
    "forget",
    "import_lines",
    "pasts",
    "stats",
    "verify",
]

_PREFIX: Final = ".".join(TRAJECTORIES)
_MANY: Final = 256


@dataclass(frozen=True, slots=True)
class Past:
    """One remembered run."""

    id: str
    user: str
    when: datetime
    trajectory: Trajectory


@dataclass(frozen=True, slots=True)
class Stats:
    """What a memory folder holds."""

    embedder: str
    records: int
    vectors: int
    indexed: int
    """Vectors in the index on disk; 0 while they are few enough to be compared one by one."""
    size: int
    """Bytes on disk."""
    users: dict[str, dict[str, int]] = field(default_factory=dict)
    """By user: remembered runs, and how many of them were solved."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which runs to forget: all of these must hold."""

    ids: tuple[str, ...] = ()
    user: str | None = None
    prompt: str | None = None
    older_than: timedelta | None = None

    def holds(self, past: Past) -> bool:
        """Whether a run is meant."""
        return (
            (not self.ids or past.id in self.ids)
            and self.user in (None, past.user)
            and self.prompt in (None, past.trajectory.prompt)
            and (self.older_than is None or past.when < datetime.now(UTC) - self.older_than)
        )


class Line(BaseModel):
    """One record as a line of an exported file. Vectors are not in it: who imports it embeds anew."""

    namespace: list[str] = Field(min_length=1)
    key: str = Field(min_length=1)
    value: dict[str, Any]
    fields: list[str] | None = None
    ttl: float | None = None
    updated_at: datetime


def existing(folder: Path) -> Path:
    """The folder, if there is a memory in it.

    Raises:
        InputError: There is none.
    """
    if not (folder / "records.sqlite").exists():
        raise InputError(f"there is no memory in {folder} yet: gems generate begins one")
    return folder


def stats(folder: Path) -> Stats:
    """What is in a folder.

    Raises:
        InputError: There is no memory in it.
    """
    with closing(_open(folder)) as records:
        saved = newest(folder / "index")
        index = _index(records, saved)
        runs: dict[str, Counter[str]] = {}
        for past in _all(records):
            counted = runs.setdefault(past.user, Counter(runs=0, solved=0))
            counted.update(runs=1, solved=int(past.trajectory.solved))
        return Stats(
            embedder=records.meta("embedder") or "none yet",
            records=records.count(),
            vectors=records.count("vectors"),
            indexed=index.manifest.count if index and index.manifest else 0,
            size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            users={user: dict(counted) for user, counted in runs.items()},
        )


def pasts(folder: Path) -> Iterator[Past]:
    """Every remembered run, by user, oldest first.

    Raises:
        InputError: There is no memory in the folder.
    """
    with closing(_open(folder)) as records:
        yield from _all(records)


def find(folder: Path, run_id: str) -> Past:
    """A remembered run by its id, or by the beginning of it.

    Raises:
        InputError: None has it, or several begin so.
    """
    found = [past for past in pasts(folder) if past.id.startswith(run_id)]
    exact = [past for past in found if past.id == run_id]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise InputError(f"no remembered run has the id {run_id}; gems memory search tells ids")
    raise InputError(f"{len(found)} remembered runs begin with {run_id}; give more of it")


def export_lines(folder: Path) -> Iterator[str]:
    """Every record of the folder as a line of JSON, those of other programs too."""
    with closing(_open(folder)) as records:
        for row, fields in records.everything():
            _, space, key, value, _, updated, ttl = row
            line = Line(
                namespace=space.split("."), key=key, value=json.loads(value), fields=fields, ttl=ttl, updated_at=updated
            )
            yield line.model_dump_json(exclude_none=True)


def import_lines(store: FaissStore, lines: Iterable[str], on_done: Callable[[int], None] | None = None) -> int:
    """Put exported records into a store; those that are there under the same key are replaced.

    Returns:
        How many.

    Raises:
        InputError: A line is no record; its number is told, and what stood before it is kept.
    """
    puts: list[PutOp] = []
    done = 0

    def put() -> None:
        nonlocal done
        store.batch(puts)
        done += len(puts)
        puts.clear()
        if on_done:
            on_done(done)

    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = Line.model_validate_json(text)
        except ValidationError as error:
            put()
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"line {number}: {where + ': ' if where else ''}{first['msg']}") from None
        puts.append(PutOp(tuple(line.namespace), line.key, line.value, line.fields or False, line.ttl))
        if len(puts) >= _MANY:
            put()
    put()
    return done


def forget(folder: Path, wish: Wish) -> tuple[list[Past], int]:
    """Forget runs, and remove the images that no other remembered run refers to.

    Returns:
        The runs, and how many images were removed.
    """
    with closing(_open(folder)) as records:
        every = list(_all(records))
        gone = [past for past in every if wish.holds(past)]
        with records.writing():
            for past in gone:
                records.delete(".".join(namespace(past.user)), past.id)
        forgotten = {(past.user, past.id) for past in gone}
        kept = {ref.uri for past in every if (past.user, past.id) not in forgotten for ref in _images(past)}
        removed = 0
        for uri in {ref.uri for past in gone for ref in _images(past)} - kept:
            filesystem, path = fsspec.core.url_to_fs(uri)
            try:
                filesystem.rm_file(path)
                removed += 1
            except FileNotFoundError:  # removed before, by hand or by a run of this that was stopped
                continue
        records.clean()
        if gone:  # their vectors are in the index too: it is made again without them
            shutil.rmtree(folder / "index", ignore_errors=True)
        return gone, removed


def verify(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Whether a memory is whole: name, whether it is right, and what was found; one check at a time.

    Raises:
        InputError: There is no memory in the folder.
    """
    with closing(_open(folder)) as records:
        said = records.integrity()
        yield "records", said == "ok", said if said != "ok" else f"{records.count()} records"
        dims, bad, total = int(records.meta("dims") or 0), 0, 0
        try:
            for _, vectors, _ in records.added(0):
                total += len(vectors)
                right = vectors.shape[1] == dims and np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
                bad += int(len(vectors) - np.count_nonzero(right))
            detail = f"{total} vectors of {dims} dimensions" if not bad else f"{bad} of {total} are not of unit length"
        except ValueError:  # of different lengths
            bad, detail = 1, "they have different dimensions"
        yield "vectors", not bad, detail

        saved = newest(folder / "index")
        if saved is None:
            yield "index", True, "not needed for so few"
        else:
            index = _index(records, saved)
            held = (
                f"{index.manifest.count} vectors" if index and index.manifest else "it is made again when next searched"
            )
            yield "index", index is not None, held

        store, missing, images = ImageStore(), [], 0
        for past in _all(records):
            for ref in _images(past):
                images += 1
                try:
                    store.read(ref)
                except BackendError as error:
                    missing.append(str(error))
        yield "images", not missing, missing[0] if missing else f"{images} images"


def _images(past: Past) -> list[ImageRef]:
    return [attempt.image for attempt in past.trajectory.attempts]


def _index(records: Records, saved: Path | None) -> VectorIndex | None:
    named = {name: records.meta(name) or "" for name in ("store", "embedder")}
    return open_index(saved, **named) if saved else None


def _open(folder: Path) -> Records:
    return open_records(existing(folder))


def _all(records: Records) -> Iterator[Past]:
    for row in list(records.inside(_PREFIX)):
        yield _past(row)


def _past(row: Row) -> Past:
    _, space, key, value, _, updated, _ = row
    return Past(
        id=key,
        user=user_of(tuple(space.split("."))),
        when=datetime.fromisoformat(updated),
        trajectory=Trajectory.model_validate_json(value),
    )
