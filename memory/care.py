"""Looking after a memory folder: what is in it, taking it elsewhere, forgetting, and whether it is whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from langgraph.store.base import PutOp
from pydantic import BaseModel, Field, ValidationError

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.memory.experience import EXPERIENCES, Experience, remake
from gems.memory.image_store import ImageStore
from gems.memory.index import EXACT_UP_TO, newest, newest_index, remove
from gems.memory.records import Records, Row
from gems.memory.store import FaissStore, open_records
from gems.memory.trajectory import SOLVED, TRAJECTORIES, Trajectory, namespace, user_of
from gems.secrets import one_line

__all__ = [
    "Forgotten",
    "Line",
    "Past",
    "Stats",
    "Wish",
    "existing",
    "export_lines",
    "find",
    "forget",
    "import_lines",
    "left_alone",
    "pasts",
    "size_of",
    "stats",
    "verify",
]

_KINDS: Final[dict[tuple[str, ...], type[BaseModel]]] = {TRAJECTORIES: Trajectory, EXPERIENCES: Experience}
_MANY: Final = 256


@dataclass(frozen=True, slots=True)
class Past:
    """One remembered run."""

    id: str
    user: str
    when: datetime
    trajectory: Trajectory
    record: int
    """The record's number in its file."""


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
    """By user: remembered runs, how many of them were solved, and the experiences made from them."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was forgotten."""

    runs: list[Past]
    experiences: int
    """How many experiences went whose runs had gone before."""
    images: int
    """How many images were removed."""
    overwritten: bool
    """Whether nothing of it is left in the file; where other processes read, it is when they close it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which runs to forget: all of these must hold."""

    ids: tuple[str, ...] = ()
    user: str | None = None
    prompt: str | None = None
    older_than: timedelta | None = None

    def holds(self, past: Past) -> bool:
        """Whether a run is meant."""
        return (not self.ids or past.id in self.ids) and self.means(past.user, past.trajectory.prompt, past.when)

    def means(self, user: str, prompt: str, when: datetime) -> bool:
        """Whether all but the ids hold."""
        return (
            self.user in (None, user)
            and self.prompt in (None, prompt)
            and (self.older_than is None or when < datetime.now(UTC) - self.older_than)
        )


class Line(BaseModel):
    """One record as a line of an exported file. Vectors are not in it: who imports it embeds anew."""

    namespace: list[Annotated[str, Field(min_length=1, pattern=r"^[^.]+$")]] = Field(min_length=1)
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


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stats(folder: Path) -> Stats:
    """What is in a folder.

    Raises:
        InputError: There is no memory in it.
    """
    with closing(_open(folder)) as records:
        index = newest_index(folder / "index", **records.named())
        runs: dict[str, Counter[str]] = {}
        for past in _all(records):
            counted = runs.setdefault(past.user, Counter(runs=0, solved=0, experiences=0))
            counted.update(runs=1, solved=int(past.trajectory.solved))
        for row in _rows(records, EXPERIENCES):
            counted = runs.setdefault(user_of(tuple(row[1].split("."))), Counter(runs=0, solved=0, experiences=0))
            counted.update(experiences=1)
        return Stats(
            embedder=records.meta("embedder") or "none yet",
            records=records.count(),
            vectors=records.count("vectors"),
            indexed=index.manifest.count if index and index.manifest else 0,
            size=size_of(folder),
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
    """Every record of the folder as a line of JSON, those of other programs too.

    Raises:
        InputError: There is no memory in the folder; at once, before the first line is asked for.
    """
    return _lines(_open(folder))


def _lines(records: Records) -> Iterator[str]:
    with closing(records):
        for row, fields in records.everything():
            _, space, key, value, _, updated, ttl = row
            line = {"namespace": space.split("."), "key": key, "value": json.loads(value), "updated_at": updated}
            yield json.dumps(line | ({"fields": fields} if fields else {}) | ({"ttl": ttl} if ttl is not None else {}))


def import_lines(store: FaissStore, lines: Iterable[str], on_done: Callable[[int], None] | None = None) -> int:
    """Put exported records into a store; those that are there under the same key are replaced.

    Returns:
        How many.

    Raises:
        InputError: A line is no record; its number is told, and what stood before it is kept.
    """
    puts: list[PutOp] = []
    dates: list[tuple[tuple[str, ...], str, datetime]] = []
    done = 0

    def put() -> None:
        nonlocal done
        store.batch(puts)
        store.date(dates)
        done += len(puts)
        dates.clear()
        puts.clear()
        if on_done:
            on_done(done)

    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = Line.model_validate(json.loads(text))
            if kind := _KINDS.get(tuple(line.namespace[:-1])):
                kind.model_validate(line.value)
        except ValueError as error:  # no JSON, or no record
            put()
            raise InputError(f"line {number}: {_fault(error)}") from None
        puts.append(PutOp(tuple(line.namespace), line.key, line.value, line.fields or False, line.ttl))
        dates.append((tuple(line.namespace), line.key, line.updated_at))
        if len(puts) >= _MANY:
            put()
    put()
    return done


def forget(folder: Path, wish: Wish, images: ImageStore | None = None) -> Forgotten:
    """Forget runs, and what was learned from them and from no other.

    Images that no other run of this memory refers to go with them, where their store is given.

    Args:
        folder: The memory's.
        wish: Which runs.
        images: Only images in this store are removed, whatever a record says; give none where other memories use it.
    """
    with closing(_open(folder)) as records:
        every = list(_all(records))
        gone = [past for past in every if wish.holds(past)]
        records_gone = {past.record for past in gone}
        kept = {ref.sha256 for past in every if past.record not in records_gone for ref in _images(past)}
        # Images first: stopped in between, the runs are still there to be forgotten again.
        refs = {ref.sha256: ref for past in gone for ref in _images(past) if ref.sha256 not in kept}
        removed = sum(images.remove(ref) for ref in refs.values()) if images else 0
        with records.writing():
            for past in gone:
                records.drop(past.record)
            for user in {past.user for past in gone} | ({wish.user} if wish.user else set()):
                kept_runs = {p.id: p.trajectory for p in every if p.user == user and p.record not in records_gone}
                _unlearn(records, user, {past.id for past in gone if past.user == user}, kept_runs)
            alone = _without_runs(records, wish, every)
            for record in alone:
                records.drop(record)
            if gone or alone:
                records.rename()  # their vectors are in the index too: it is made again without them
        if gone or alone:
            remove(folder / "index")
        return Forgotten(gone, len(alone), removed, records.clean())


def _unlearn(records: Records, user: str, gone: AbstractSet[str], kept: Mapping[str, Trajectory]) -> None:
    """Take runs out of what a user's runs have taught."""
    for row in list(records.inside(".".join(namespace(user, EXPERIENCES)))):
        experience = _experience(row)
        if experience is None or gone.isdisjoint({*experience.runs, *(run for run, _ in experience.uses)}):
            continue
        left = remake(experience, gone, kept)
        if left is None:
            records.drop(row[0])
        else:
            records.rewrite(row[0], left.model_dump(mode="json"))
    for row in list(records.inside(".".join(namespace(user, SOLVED)))):
        if json.loads(row[3]).get("run") not in kept:
            records.drop(row[0])


def left_alone(folder: Path, wish: Wish) -> int:
    """How many experiences are meant whose runs are gone: where memory is limited, they outlive them.

    Raises:
        InputError: There is no memory in the folder.
    """
    with closing(_open(folder)) as records:
        return len(_without_runs(records, wish, list(_all(records))))


def _without_runs(records: Records, wish: Wish, every: Sequence[Past]) -> list[int]:
    known, found = {(past.user, past.id) for past in every}, []
    for row in () if wish.ids else _rows(records, EXPERIENCES):
        experience, user = _experience(row), user_of(tuple(row[1].split(".")))
        if (
            experience
            and known.isdisjoint((user, run) for run in experience.runs)
            and wish.means(user, experience.prompt, datetime.fromisoformat(row[5]))
        ):
            found.append(row[0])
    return found


def verify(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Whether a memory is whole: name, whether it is right, and what was found; one check at a time.

    Raises:
        InputError: There is no memory in the folder.
    """
    with closing(_open(folder)) as records:
        said = records.integrity()
        yield "records", said == "ok", said if said != "ok" else f"{records.count()} records"
        for name, layer, reads in (("runs", TRAJECTORIES, _read), ("experiences", EXPERIENCES, _experience)):
            unreadable = [row[2] for row in _rows(records, layer) if reads(row) is None]
            told = f"{len(unreadable)} cannot be read, such as {unreadable[0]}" if unreadable else "all can be read"
            yield name, not unreadable, told
        yield "vectors", *_check_vectors(records)
        yield "index", *_check_index(records, folder)
        yield "images", *_check_images(records)


def _check_vectors(records: Records) -> tuple[bool, str]:
    dims, bad, total = int(records.meta("dims") or 0), 0, 0
    try:
        for _, vectors, _ in records.added(0):
            total += len(vectors)
            right = vectors.shape[1] == dims and np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
            bad += int(len(vectors) - np.count_nonzero(right))
    except ValueError:
        return False, "they have different dimensions"
    return not bad, f"{bad} of {total} are not of unit length" if bad else f"{total} vectors of {dims} dimensions"


def _check_index(records: Records, folder: Path) -> tuple[bool, str]:
    if newest(folder / "index") is None:
        many = records.count("vectors") > EXACT_UP_TO
        return True, "it is made at the next search" if many else "not needed for so few"
    index = newest_index(folder / "index", **records.named())
    if index is None or index.manifest is None:
        return False, "it is damaged or of other records, and is made again at the next search"
    return True, f"{index.manifest.count} vectors"


def _check_images(records: Records) -> tuple[bool, str]:
    store, bad, count = ImageStore(), [], 0
    for past in _all(records):
        for ref in _images(past):
            count += 1
            try:
                store.read(ref)
            except (BackendError, ValueError, ImportError) as error:  # of fsspec, for a protocol that it does not know
                bad.append(one_line(error))
    return not bad, f"{len(bad)} of {count} are not there or damaged; {bad[0]}" if bad else f"{count} images"


def _fault(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return f"no JSON: {error}"
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def _images(past: Past) -> list[ImageRef]:
    return [attempt.image for attempt in past.trajectory.attempts]


def _open(folder: Path) -> Records:
    records = open_records(existing(folder))
    records.expire()
    return records


def _rows(records: Records, layer: tuple[str, ...] = TRAJECTORIES) -> list[Row]:
    """The records of a layer of memory, one namespace below it for every user."""
    return [row for row in records.inside(".".join(layer)) if row[1].count(".") == len(layer)]


def _all(records: Records) -> Iterator[Past]:
    return (past for row in _rows(records) if (past := _read(row)) is not None)


def _read(row: Row) -> Past | None:
    """A run; None if the record holds none."""
    record, space, key, value, _, updated, _ = row
    try:
        trajectory = Trajectory.model_validate_json(value)
    except ValidationError:
        return None
    return Past(key, user_of(tuple(space.split("."))), datetime.fromisoformat(updated), trajectory, record)


def _experience(row: Row) -> Experience | None:
    try:
        return Experience.model_validate_json(row[3])
    except ValidationError:
        return None
