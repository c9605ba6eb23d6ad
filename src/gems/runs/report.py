"""``report.html``: one self-contained page that shows why the image is right, or where it is wrong."""

from __future__ import annotations

import base64
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from gems.graph.state import Attempt, Verdict
from gems.memory.image_store import decode_png
from gems.models.public_names import public_fingerprint, public_name
from gems.printable import as_shown, in_plain_words
from gems.runs.record import RunRecord

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Change", "render_report", "word_changes"]

_MAX_WORDS: Final = 300
"""Words of a prompt whose changes are found one by one: that can take time in proportion to their number cubed."""
_THUMBNAIL: Final = 360
"""Pixels of the longer side of the attempts' pictures. The best image is shown at its own size."""


class Change(NamedTuple):
    """A piece of the difference between two prompts."""

    kind: Literal["same", "added", "removed"]
    text: str


@dataclass(frozen=True, slots=True)
class _Card:
    """An attempt as the page shows it."""

    attempt: Attempt
    thumbnail: str
    verdict_of: Mapping[str, Verdict]
    """Verdicts by the id of their requirement."""
    passed: int
    """The number of the user's requirements that passed."""
    changes: Sequence[Change]
    """Changes since the previous attempt's prompt; for the first attempt, since the user's prompt."""

    @property
    def result(self) -> str:
        """How many of the user's requirements passed, in words."""
        return f"{self.passed} of {len(self.attempt.verdicts)} passed" if self.attempt.verdicts else "not checked"

    @property
    def unchanged(self) -> bool:
        return all(change.kind == "same" for change in self.changes)


def word_changes(before: str, after: str) -> list[Change]:
    """The word-level difference of two prompts, in reading order."""
    a, b = before.split(), after.split()
    if max(len(a), len(b)) > _MAX_WORDS:
        return _outer_changes(a, b)
    changes = []
    for operation, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if operation == "equal":
            changes.append(Change("same", " ".join(a[a0:a1])))
            continue
        if a1 > a0:
            changes.append(Change("removed", " ".join(a[a0:a1])))
        if b1 > b0:
            changes.append(Change("added", " ".join(b[b0:b1])))
    return changes


def _outer_changes(a: Sequence[str], b: Sequence[str]) -> list[Change]:
    """What stands between the words that two long prompts begin and end with, as one change."""
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    pieces: tuple[tuple[Literal["same", "added", "removed"], Sequence[str]], ...] = (
        ("same", a[:start]),
        ("removed", a[start : len(a) - end]),
        ("added", b[start : len(b) - end]),
        ("same", a[len(a) - end :]),
    )
    return [Change(kind, " ".join(words)) for kind, words in pieces if words]


def render_report(record: RunRecord, pngs: Sequence[bytes]) -> str:
    """The page of a run.

    Args:
        record: The record of the run.
        pngs: The images of the run's attempts, in order.
    """
    cards, previous = [], record.prompt
    for attempt, png in zip(record.attempts, pngs, strict=True):
        cards.append(
            _Card(
                attempt=attempt,
                thumbnail=_thumbnail(png),
                verdict_of={verdict.requirement_id: verdict for verdict in attempt.answers},
                passed=sum(verdict.answer == "yes" for verdict in attempt.verdicts),
                changes=word_changes(previous, attempt.prompt),
            )
        )
        previous = attempt.prompt
    return _template().render(
        record=record,
        cards=cards,
        has_candidates=len({attempt.round for attempt in record.attempts}) < len(cards),
        best=None if record.best is None else cards[record.best],
        model_name=public_name,
        model_hash=public_fingerprint,
        best_image=None if record.best is None else _data_uri("image/png", pngs[record.best]),
    )


@cache
def _template() -> Template:
    # Everything is escaped: prompts and answers come from users and models.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=as_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_plain_words"] = in_plain_words
    return environment.get_template("report.html.j2")


def _thumbnail(png: bytes) -> str:
    small = decode_png(png).convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
