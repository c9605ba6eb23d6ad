"""``report.html``: one page, with everything in it, that shows why an image is right or where it is not."""

from __future__ import annotations

import base64
import difflib
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

__all__ = ["Change", "render_report", "word_changes"]

_THUMBNAIL: Final = 360
"""Pixels on the longer side of the attempts' pictures; the best image is shown in full."""


class Change(NamedTuple):
    """A piece of the step from one prompt to the next."""

    kind: Literal["same", "added", "removed"]
    text: str


def word_changes(before: str, after: str) -> list[Change]:
    """The word-level difference of two prompts, in reading order."""
    a, b = before.split(), after.split()
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


def render_report(record: dict[str, Any], pngs: Sequence[bytes]) -> str:
    """The page for a run's record and its attempts' PNGs, in order."""
    attempts, previous = [], record["prompt"]
    for attempt, png in zip(record["attempts"], pngs, strict=True):
        verdicts = {v["requirement_id"]: v for v in (*attempt["verdicts"], *attempt.get("checks", []))}
        attempts.append(
            {
                **attempt,
                "thumbnail": _thumbnail(png),
                "verdict_of": verdicts,
                "passed": sum(v["answer"] == "yes" for v in attempt["verdicts"]),
                "changes": word_changes(previous, attempt["prompt"]),
                "unchanged": previous == attempt["prompt"],
            }
        )
        previous = attempt["prompt"]
    best = record["best"]
    return _template().render(
        record=record,
        checked=[*record["requirements"], *record.get("checks", [])],
        attempts=attempts,
        best=attempts[best] if best is not None else None,
        best_image=_data_uri("image/png", pngs[best]) if best is not None else None,
    )


@cache
def _template() -> Template:
    # Every value is escaped: prompts and answers are other people's text.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _thumbnail(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
