"""Maintenance of a memory folder: statistics, export and import, forgetting, and integrity checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.json_text import parse_model
from gems.memory.experience import EXPERIENCES, Experience, remake
from gems.memory.image_store import ImageStore, read_from
from gems.memory.index import newest_index, remove
from gems.memory.integrity import check_index, check_vectors
from gems.memory.records import Records, Row, open_existing_records
from gems.memory.trajectory import SOLVED, TRAJECTORIES, Trajectory, namespace, user_of
from gems.secrets import one_line

__all__ = [
    "ForgetResult",
    "RememberedRun",
    "Selection",
    "Stats",
    "count_orphans",
    "find",
    "forget",
    "remembered_runs",
    "size_of",
    "stats",
    "verify",
]


@dataclass(frozen=True, slots=True)
class RememberedRun:
    """One remembered run."""

    id: str
    user: str
    when: datetime
    """The time at which it was stored."""
    trajectory: Trajectory
    record: int
    """The id of its record in the file."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a memory folder holds."""

    embedder: str
    records: int
    vectors: int
    indexed: int
    """Number of vectors in the index on disk; 0 while there are so few that a search compares with all of them."""
    size: int
    """Size on disk in bytes."""
    users: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each user, the number of runs, of solved runs, and of experiences."""


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """What ``forget`` deleted."""

    runs: list[RememberedRun]
    experiences: int
    """Number of deleted experiences: those that only these runs taught, and selected ones that outlived their runs."""
    images: int
    """Number of deleted images."""
    overwritten: bool
    """True if the deleted data has been overwritten on disk. False while another process has the file open."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Conditions on remembered runs; a run is selected if it meets all of them."""

    ids: tuple[str, ...] = ()
    user: str | None = None
    prompt: str | None = None
    older_than: timedelta | None = None

    def includes(self, run: RememberedRun) -> bool:
        """Whether a run meets all conditions."""
        return (not self.ids or run.id in self.ids) and self.includes_record(run.user, run.trajectory.prompt, run.when)

    def includes_record(self, user: str, prompt: str, when: datetime) -> bool:
        """Whether a record meets all conditions other than the ids."""
        return (
            self.user in (None, user)
            and self.prompt in (None, prompt)
            and (self.older_than is None or when < datetime.now(UTC) - self.older_than)
        )


def size_of(folder: Path) -> int:
    """The size of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stats(folder: Path) -> Stats:
    """What a folder holds.

    Raises:
        InputError: The folder holds no memory.
    """
    with closing(open_existing_records(folder)) as records:
        index = newest_index(folder / "index", **records.identity())
        users: dict[str, Counter[str]] = {}
        for run in _runs(records):
            counts = users.setdefault(run.user, Counter(runs=0, solved=0, experiences=0))
            counts.update(runs=1, solved=int(run.trajectory.solved))
        for row in _rows(records, EXPERIENCES):
            counts = users.setdefault(_user(row), Counter(runs=0, solved=0, experiences=0))
            counts.update(experiences=1)
        return Stats(
            embedder=records.meta("embedder") or "none yet",
            records=records.count(),
            vectors=records.count("vectors"),
            indexed=index.manifest.count if index and index.manifest else 0,
            size=size_of(folder),
            users={user: dict(counts) for user, counts in users.items()},
        )


def remembered_runs(folder: Path) -> Iterator[RememberedRun]:
    """Every remembered run, by user, oldest first.

    Raises:
        InputError: The folder holds no memory.
    """
    with closing(open_existing_records(folder)) as records:
        yield from _runs(records)


def find(folder: Path, run_id: str) -> RememberedRun:
    """A remembered run by its id, or by the beginning of its id.

    Raises:
        InputError: No run matches, or several do.
    """
    matching = [run for run in remembered_runs(folder) if run.id.startswith(run_id)]
    exact = [run for run in matching if run.id == run_id]
    if len(exact or matching) == 1:
        return (exact or matching)[0]
    if not matching:
        raise InputError(f"no remembered run has the id {run_id}; gems memory search shows ids")
    raise InputError(f"{len(matching)} remembered runs begin with {run_id}; give more of the id")


# --- forgetting -----------------------------------------------------------------------------------------------------


def forget(folder: Path, selection: Selection, images: ImageStore | None = None) -> ForgetResult:
    """Delete runs, and what was learned from them alone.

    Args:
        folder: The memory's folder.
        selection: The runs to delete.
        images: The store of their images. Images in it that no other run of this memory refers to are deleted too.
            Leave it out if other memories refer to its images.

    Raises:
        InputError: The folder holds no memory.
    """
    with closing(open_existing_records(folder, read_only=False)) as records:
        runs = list(_runs(records))
        forgotten_runs = [run for run in runs if selection.includes(run)]
        # Images first: if the deletion is interrupted, the runs still exist and can be forgotten again.
        image_count = _remove_images(images, records, forgotten_runs) if images else 0
        with records.writing():
            runs = list(_runs(records))  # also those that others have stored since: they are not forgotten
            for run in forgotten_runs:
                records.drop(run.record)
            users = {run.user for run in forgotten_runs} | ({selection.user} if selection.user else set())
            experience_count = sum(_unlearn(records, user, runs, forgotten_runs) for user in users)
            orphans = _orphans(records, selection, runs)
            for record in orphans:
                records.drop(record)
            if forgotten_runs or orphans:
                records.renew_identity()  # the index still holds the deleted vectors
        if forgotten_runs or orphans:
            remove(folder / "index")
        return ForgetResult(forgotten_runs, experience_count + len(orphans), image_count, records.clean())


def _remove_images(images: ImageStore, records: Records, forgotten_runs: Sequence[RememberedRun]) -> int:
    """Delete the images of forgotten runs that no other run refers to; returns their number."""
    needed_images = _NeededImages(records, {run.record for run in forgotten_runs})
    refs = {ref.sha256: ref for run in forgotten_runs for ref in _images(run)}
    return sum(
        images.remove(ref, partial(needed_images.include, ref))
        for ref in refs.values()
        if not needed_images.include(ref)
    )


class _NeededImages:
    """The images that runs refer to, some runs aside, whatever other processes store meanwhile."""

    def __init__(self, records: Records, forgotten_records: AbstractSet[int]) -> None:
        self._records, self._forgotten_records = records, forgotten_records
        self._version, self._hashes = -1, set[str]()

    def include(self, ref: ImageRef) -> bool:
        """Whether a run refers to an image now."""
        version = self._records.version()
        if version != self._version:
            runs = (run for run in _runs(self._records) if run.record not in self._forgotten_records)
            self._hashes = {image.sha256 for run in runs for image in _images(run)}
            self._version = version
        return ref.sha256 in self._hashes


def _unlearn(
    records: Records, user: str, runs: Sequence[RememberedRun], forgotten_runs: Sequence[RememberedRun]
) -> int:
    """Remove forgotten runs from a user's experiences and solved prompts; returns how many experiences are gone."""
    forgotten_records = {run.record for run in forgotten_runs}
    forgotten_ids = {run.id for run in forgotten_runs if run.user == user}
    remaining = {r.id: r.trajectory for r in runs if r.user == user and r.record not in forgotten_records}
    experience_count = _unlearn_experiences(records, user, forgotten_ids, remaining)
    for row in list(records.inside(".".join(namespace(user, SOLVED)))):
        if row.content.get("run") not in remaining:
            records.drop(row.id)
    return experience_count


def _unlearn_experiences(
    records: Records, user: str, forgotten_ids: AbstractSet[str], remaining: Mapping[str, Trajectory]
) -> int:
    count = 0
    for row in list(records.inside(".".join(namespace(user, EXPERIENCES)))):
        experience = _experience(row)
        if experience is None or forgotten_ids.isdisjoint({*experience.runs, *(run for run, _ in experience.uses)}):
            continue
        remade = remake(experience, forgotten_ids, remaining)
        if remade is None:
            records.drop(row.id)
            count += 1
        else:
            records.rewrite(row.id, remade.model_dump(mode="json"))
    return count


def count_orphans(folder: Path, selection: Selection) -> int:
    """The number of selected experiences that outlived their runs, which happens if memory is limited.

    Raises:
        InputError: The folder holds no memory.
    """
    with closing(open_existing_records(folder)) as records:
        return len(_orphans(records, selection, list(_runs(records))))


def _orphans(records: Records, selection: Selection, runs: Sequence[RememberedRun]) -> list[int]:
    """The ids of selected experiences without runs; none if the selection names runs."""
    if selection.ids:
        return []
    run_keys, orphans = {(run.user, run.id) for run in runs}, []
    for row in _rows(records, EXPERIENCES):
        experience, user = _experience(row), _user(row)
        if (
            experience
            and run_keys.isdisjoint((user, run) for run in experience.runs)
            and selection.includes_record(user, experience.prompt, row.written_at)
        ):
            orphans.append(row.id)
    return orphans


# --- integrity ------------------------------------------------------------------------------------------------------


def verify(folder: Path, images: Sequence[ImageStore] | None = None) -> Iterator[tuple[str, bool, str]]:
    """Check a memory; yields the name of each check, whether it passed, and details.

    Args:
        folder: The memory's folder.
        images: The stores to look for images in; default: the configured one. The addresses in records are not opened.

    Raises:
        InputError: The folder holds no memory.
    """
    with closing(open_existing_records(folder, with_expired=True)) as records:
        report = records.integrity()
        faults = [report] if report != "ok" else list(records.faults())
        yield "records", not faults, f"{len(faults)}: {faults[0]}" if faults else f"{records.count()} records"
        for name, layer, read in (("runs", TRAJECTORIES, _run), ("experiences", EXPERIENCES, _experience)):
            unreadable = [row.key for row in _rows(records, layer) if read(row) is None]
            detail = f"{len(unreadable)} cannot be read, such as {unreadable[0]}" if unreadable else "all can be read"
            yield name, not unreadable, detail
        for _ in range(2):  # an index that was published meanwhile is not that of this moment's records
            with records.reading():  # others may write
                vectors, index = check_vectors(records), check_index(records, folder / "index")
            if index[0]:
                break
        yield "vectors", *vectors
        yield "index", *index
        yield "images", *_check_images(records, images or [ImageStore(create=False)])


def _check_images(records: Records, stores: Sequence[ImageStore]) -> tuple[bool, str]:
    faults, count = [], 0
    for run in _runs(records):
        for ref in _images(run):
            count += 1
            try:
                read_from(stores, ref.sha256, ref.uri)
            except BackendError as error:
                faults.append(one_line(error))
    if faults:
        return False, f"{len(faults)} of {count} are missing or damaged; {faults[0]}"
    return True, f"{count} images"


# --- reading records ------------------------------------------------------------------------------------------------


def _rows(records: Records, layer: tuple[str, ...] = TRAJECTORIES) -> list[Row]:
    """The records of one layer of memory, which has one namespace per user."""
    return [row for row in records.inside(".".join(layer)) if row.namespace.count(".") == len(layer)]


def _runs(records: Records) -> Iterator[RememberedRun]:
    return (run for row in _rows(records) if (run := _run(row)) is not None)


def _user(row: Row) -> str:
    return user_of(tuple(row.namespace.split(".")))


def _images(run: RememberedRun) -> list[ImageRef]:
    return [attempt.image for attempt in run.trajectory.attempts]


def _run(row: Row) -> RememberedRun | None:
    """The run in a record; None if the record is not a run."""
    try:
        trajectory = parse_model(Trajectory, row.value)
        return RememberedRun(row.key, user_of(row.labels), row.written_at, trajectory, row.id)
    except ValueError:
        return None


def _experience(row: Row) -> Experience | None:
    """The experience in a record; None if the record is not an experience."""
    try:
        _ = row.labels, row.written_at
        return parse_model(Experience, row.value)
    except ValueError:
        return None
