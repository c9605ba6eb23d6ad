"""Checks the lines of ``results.jsonl``: people edit them, and every reader relies on their form."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)

from gems.graph.state import Answer, Kind, Outcome, Usage
from gems.json_text import MAX_TEXT, parse_json, parse_model
from gems.seeds import MAX_SEED

__all__ = ["MAX_USAGE", "BoundedUsage", "check_row"]

_Count: TypeAlias = Annotated[NonNegativeInt, Field(le=2**31 - 1)]
"""A number of rounds or attempts, as the index holds it."""
_Whole: TypeAlias = Annotated[NonNegativeInt, Field(le=MAX_SEED)]
"""A seed or a place."""


_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
MAX_USAGE: Final = 2**53
"""A larger figure is no count: JSON's numbers are exact up to here, and sums must fit into a table's column."""


def _bounded(usage: Usage) -> Usage:
    if max(map(abs, usage.model_dump().values())) > MAX_USAGE:
        raise ValueError(f"usage has a number beyond {MAX_USAGE}")
    return usage


BoundedUsage: TypeAlias = Annotated[Usage, AfterValidator(_bounded)]
"""What was spent, as far as anybody can have spent it."""


def _with_time_zone(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("it has no time zone")
    return text


_Moment: TypeAlias = Annotated[str, AfterValidator(_with_time_zone)]
"""A moment as ISO 8601 has it."""


class _Checked(BaseModel):
    """Other programs may add fields; those that ours read have to be right."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, hide_input_in_errors=True, str_max_length=MAX_TEXT
    )


class _Requirement(_Checked):
    id: str
    question: str
    kind: Kind = "other"


class _Attempt(_Checked):
    round: _Count
    candidate: _Count
    strategy: str
    prompt: str
    negative_prompt: str = ""
    seed: _Whole
    score: _Share
    passed: _Count
    total: _Count
    verified: bool = True
    verdicts: dict[str, tuple[Answer, _Share]]
    image: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    edited_from: str = ""
    quality: _Share = 0.5
    flaws: str = ""


class _Row(_Checked):
    index: _Whole
    line: _Whole = 0
    id: str | None = None
    prompt: str
    seed: _Whole
    copy_: _Whole = Field(default=0, alias="copy")
    bound_to: str = ""
    thread: str = ""
    run_id: str = ""
    outcome: Outcome | None = None
    score: _Share = 0.0
    rounds: _Count = 0
    requirements: list[_Requirement] = []
    attempts: list[_Attempt] = []
    best: _Count | None = None
    skills: list[str] = []
    memories: list[str] = []
    usage: BoundedUsage = Usage()
    errors: list[str] = []
    notes: list[str] = []
    error: str = ""
    error_kind: Literal["input", "backend"] | None = None
    stopped_by_total: str = ""
    seconds: Annotated[NonNegativeFloat, Field(le=MAX_USAGE)] = 0.0
    at: _Moment | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.best is not None and self.best >= len(self.attempts):
            raise ValueError(f"best is {self.best}, but there are {len(self.attempts)} attempts")
        if self.outcome is None and not self.error:
            raise ValueError("there is neither an outcome nor an error")
        if self.error and self.error_kind is None:
            raise ValueError("there is an error, but no error_kind")
        return self


def check_row(line: bytes) -> dict[str, Any]:
    """The result in a line.

    Raises:
        ValueError: The line is not a whole result; the message says what is wrong with it.
    """
    parse_model(_Row, line)
    row: dict[str, Any] = parse_json(line)
    return row
