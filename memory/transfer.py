"""A memory as lines of JSON, for another machine or a backup: every record with its times, without its vectors.

What is imported was written by somebody: each line is checked before it is stored, and no address in it is opened.
Which prompts are solved is taken over only from a file that is the operator's own: nobody else may say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self

from langgraph.store.base import PutOp, validate_op_namespace
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from gems.errors import InputError
from gems.json_text import check_texts, first_fault, parse_json, strict_json
from gems.memory.experience import EXPERIENCES, Experience
from gems.memory.records import MAX_TTL, Records, Times, open_existing_records
from gems.memory.solved_notes import signed
from gems.memory.store import FaissStore
from gems.memory.trajectory import SOLVED, TRAJECTORIES, Trajectory

__all__ = ["Imported", "export_lines", "import_lines", "read_lines"]

_PAGE: Final = 64
"""Records embedded and imported in one transaction: a kill loses what was paid for so many at most."""
_MAX_LINE: Final = 16 * 2**20
"""Bytes of a line. A run of a hundred images takes less than one MB."""
_CLOCK_SKEW: Final = timedelta(days=1)
"""How far another machine's clock may be ahead."""


class _SolvedNote(BaseModel):
    """The record of a solved prompt."""

    run: str


_MODELS: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    TRAJECTORIES: Trajectory,
    EXPERIENCES: Experience,
    SOLVED: _SolvedNote,
}
"""What the records of a layer must hold."""


def _past(when: datetime) -> datetime:
    """A time in UTC, which must not be in the future; a time without a zone is taken as UTC."""
    try:
        when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("is out of range") from None
    if when > datetime.now(UTC) + _CLOCK_SKEW:
        raise ValueError("is in the future")
    return when


class _Line(BaseModel):
    """One record. It holds no vectors: the import embeds the texts again."""

    namespace: list[Annotated[str, Field(max_length=1000)]] = Field(min_length=1, max_length=100)
    key: str = Field(max_length=10_000)
    value: dict[str, Any]
    fields: list[str] | None = Field(default=None, max_length=1000)
    created_at: Annotated[datetime, AfterValidator(_past)] | None = None
    updated_at: Annotated[datetime, AfterValidator(_past)]
    ttl: float | None = Field(default=None, gt=0, lt=MAX_TTL, allow_inf_nan=False)
    expires_at: datetime | None = None

    @property
    def put(self) -> PutOp:
        """The operation that stores the record."""
        return PutOp(tuple(self.namespace), self.key, self.value, self.fields or False, self.ttl)

    @property
    def times(self) -> Times:
        """The record's times; it expires no later than if it were written now."""
        expires = self.expires_at
        if expires is not None and self.ttl is not None:
            expires = min(expires, datetime.now(UTC) + timedelta(minutes=self.ttl))
        return Times(tuple(self.namespace), self.key, self.updated_at, self.created_at, expires)

    @property
    def says_solved(self) -> bool:
        """Whether the record notes that a prompt is solved."""
        return tuple(self.namespace[: len(SOLVED)]) == SOLVED

    @property
    def has_expired(self) -> bool:
        """Whether the record's time to live is over."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        validate_op_namespace(self.put)
        if self.created_at and self.created_at > self.updated_at:
            raise ValueError("created_at is later than updated_at")
        if self.expires_at is not None:
            if self.ttl is None:
                raise ValueError("expires_at needs a ttl")
            if self.expires_at.tzinfo is None:
                raise ValueError("expires_at has no time zone")
        return self


def export_lines(folder: Path) -> Iterator[str]:
    """Every record in the folder, including other programs' records, as a line of JSON.

    Raises:
        InputError: The folder holds no memory. It is raised by the call, before the first line is read.
    """
    return _lines(open_existing_records(folder))


def _lines(records: Records) -> Iterator[str]:
    with closing(records):
        for row, fields, expires_at in records.everything():
            line: dict[str, Any] = {
                "namespace": row.namespace.split("."),
                "key": row.key,
                "value": row.content,
                "created_at": row.created_at,
                "updated_at": row.updated_at,
            }
            if fields:
                line["fields"] = fields
            if row.ttl is not None and expires_at is not None:
                line |= {"ttl": row.ttl, "expires_at": datetime.fromtimestamp(expires_at, UTC).isoformat()}
            yield strict_json(line)


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a file.

    Raises:
        InputError: A line is too long, or not UTF-8 text.
    """
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise InputError(f"line {number}: longer than {_MAX_LINE >> 20} MB, which no record is")
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"line {number}: {file} is not UTF-8 text ({error}); give a file that gems memory export wrote"
                ) from None


class Imported(NamedTuple):
    """How many records of a file were imported, and how many were left out."""

    records: int
    solved_notes: int
    """Left out: notes that a prompt is solved, in a file that is not the operator's own."""
    expired: int
    """Left out: records whose time to live is over."""


def import_lines(
    store: FaissStore, lines: Iterable[str], on_done: Callable[[int], None] | None = None, *, own: bool = False
) -> Imported:
    """Put exported records into a store, replacing records with the same keys. Records that have expired are left out.

    Args:
        store: The store to write to.
        lines: Lines from ``export_lines``; blank ones are skipped.
        on_done: Called with the number of records imported so far.
        own: Whether the operator's own runs wrote the records. If not, the notes of solved prompts are left out, by
            which a run returns the image of an earlier one without looking at it.

    Raises:
        InputError: A line is not a record. The message gives its number; the lines before it have been imported.
    """
    counts = Counter[str]()
    for page in _pages(lines, counts, own=own):
        store.restore([_adopted(line) for line in page], [line.times for line in page])
        counts["imported"] += len(page)
        if on_done:
            on_done(counts["imported"])
    return Imported(counts["imported"], counts["solved notes"], counts["expired"])


def _adopted(line: _Line) -> PutOp:
    """The operation that stores a record; a note of a solved prompt, which is the operator's, as this machine's."""
    put = line.put
    return put._replace(value=signed(put.namespace, put.key, line.value)) if line.says_solved else put


def _pages(lines: Iterable[str], left_out: Counter[str], *, own: bool) -> Iterator[list[_Line]]:
    """The records in pages of one transaction each. If a line is none, the records before it come first.

    Args:
        lines: The lines.
        left_out: Where records that are left out are counted, by the reason.
        own: Whether the operator's own runs wrote the records.
    """
    page: list[_Line] = []
    try:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                line = _parse(number, text)
                if line.has_expired:
                    left_out["expired"] += 1
                elif line.says_solved and not own:
                    left_out["solved notes"] += 1
                else:
                    page.append(line)
            if len(page) >= _PAGE:
                yield page
                page = []
    except InputError:
        yield page
        raise
    yield page


def _parse(number: int, text: str) -> _Line:
    """The record in a line.

    Raises:
        InputError: There is none.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InputError(f"line {number}: not JSON: {error}") from None
    try:
        line = _Line.model_validate(content)
        if model := _MODELS.get(tuple(line.namespace[:-1])):
            model.model_validate(line.value)
            check_texts(line.value)
        return line
    except ValidationError as error:
        reason = first_fault(error)
    except ValueError as error:
        reason = str(error)
    raise InputError(f"line {number}: {reason}")
