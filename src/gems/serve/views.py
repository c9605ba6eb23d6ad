"""Runs as the service shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from gems.graph.state import (
    Answer,
    Attempt,
    GemsState,
    ImageRef,
    Kind,
    Outcome,
    Requirement,
    Strategy,
    Usage,
    Verdict,
    proposals_of,
)
from gems.runs.record import RunRecord, best_index
from gems.serve.ledger import ErrorKind, Run, Status
from gems.serve.links import Links
from gems.serve.settings import RunSettings
from gems.wording import MAX_PROMPT_LENGTH

__all__ = ["AnsweredRequirement", "Picture", "RunList", "RunRequest", "RunView", "run_view", "without_options"]

_OPTION: Final = re.compile(r"(^|[\s'\"(`])--[a-z]")
_OPERATORS_FAULT: Final = "the service's settings do not allow this; its operator can change them"


class RunRequest(BaseModel):
    """A run to begin."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_LENGTH, description="What the image should show.")
    settings: RunSettings = Field(
        default_factory=RunSettings, description="Settings that differ from the service's own."
    )
    thread: str = Field(
        default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$", description="Your name for related runs."
    )


class Picture(BaseModel):
    """An image. Its address needs no key, and expires."""

    url: str
    sha256: str
    width: int
    height: int


class AnsweredRequirement(BaseModel):
    """A requirement, and the verifier's answer."""

    id: str
    question: str
    kind: Kind
    skill: str = ""
    answer: Answer | None = None
    confidence: float | None = None
    reason: str = ""


class AttemptView(BaseModel):
    """An image, and how it was made and judged."""

    round: int
    candidate: int
    strategy: Strategy
    prompt: str
    seed: int
    score: float
    passed: int
    total: int
    judged: Literal["", "accepted", "rejected"]
    experience: str
    image: Picture
    requirements: list[AnsweredRequirement]


class RunView(BaseModel):
    """A run as it stands."""

    object: Literal["run"] = "run"
    id: str
    thread: str
    prompt: str
    status: Status
    created_at: float = Field(description="Seconds since 1970, like the other times.")
    started_at: float | None
    ended_at: float | None
    outcome: Outcome | None = None
    score: float = 0.0
    image: Picture | None = Field(default=None, description="The best image so far.")
    best: int | None = Field(default=None, description="Its index in attempts.")
    attempts: list[AttemptView] = []
    requirements: list[AnsweredRequirement] = Field(default=[], description="With the answers for the best attempt.")
    draft: str = Field(default="", description="The prompts that are being drawn, one on each line.")
    skills: list[str] = []
    memories: int = 0
    usage: Usage = Usage()
    review: dict[str, Any] | None = Field(default=None, description="The question to a person.")
    errors: list[str] = []
    notes: list[str] = Field(default=[], description="What models have the user know although nothing failed.")
    report: str | None = Field(default=None, description="The address of the report, once the run has ended.")
    error: str | None = None
    error_kind: ErrorKind | None = None


class RunList(BaseModel):
    """A page of runs, the latest first."""

    object: Literal["list"] = "list"
    data: list[RunView]
    next: int | None = Field(description="Give it as `before` to get the next page; null on the last page.")


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a run has come, from its record or from its state."""

    attempts: Sequence[Attempt] = ()
    best: int | None = None
    requirements: Sequence[Requirement] = ()
    """The user's requirements, then those that skills add."""
    draft: str = ""
    skills: Sequence[str] = ()
    memories: int = 0
    usage: Usage = field(default_factory=Usage)
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()


def _of_record(record: RunRecord) -> _Progress:
    return _Progress(
        attempts=record.attempts,
        best=record.best,
        requirements=record.all_requirements,
        skills=record.skills,
        memories=len(record.memories),
        usage=record.usage,
        errors=record.errors,
        notes=record.notes,
    )


def _of_state(state: GemsState) -> _Progress:
    attempts = state.get("attempts") or []
    return _Progress(
        attempts=attempts,
        best=best_index(attempts),
        requirements=[*(state.get("requirements") or []), *(state.get("checks") or [])],
        draft="\n".join(proposal.prompt for proposal in proposals_of(state)),
        skills=state.get("skills") or [],
        memories=len(state.get("memories") or []),
        usage=state.get("usage") or Usage(),
        errors=state.get("errors") or [],
        notes=state.get("notes") or [],
    )


def run_view(run: Run, links: Links, state: GemsState | None = None) -> RunView:
    """The view of a run.

    Args:
        run: The run to describe.
        links: Signs the addresses of the run's images.
        state: Its state, if it has not ended. Without, and without a record, the view shows no attempts.
    """
    progress = _of_record(run.record) if run.record is not None else _of_state(state or GemsState())
    attempts = [_attempt_view(attempt, progress.requirements, run.user, links) for attempt in progress.attempts]
    best = None if progress.best is None else attempts[progress.best]
    return RunView(
        id=run.id,
        thread=run.thread,
        prompt=run.prompt,
        status=run.status,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        outcome=run.outcome,
        score=best.score if best is not None else run.score,
        image=best.image if best is not None else None,
        best=progress.best,
        attempts=attempts,
        requirements=best.requirements if best is not None else _answered(progress.requirements, {}),
        draft=progress.draft,
        skills=list(progress.skills),
        memories=progress.memories,
        usage=progress.usage,
        review=_review_view(run, links),
        errors=[without_options(error) for error in progress.errors],
        notes=list(progress.notes),
        report=links.report(run.user, run.id) if run.record is not None else None,
        error=without_options(run.error) if run.error else None,
        error_kind=run.error_kind,
    )


def without_options(text: str) -> str:
    """An error without the clauses that name options of the command line, which a client of the service cannot give."""
    clauses = text.split("; ")
    return "; ".join(clause for clause in clauses if not _OPTION.search(clause)) or _OPERATORS_FAULT


def _attempt_view(attempt: Attempt, requirements: Sequence[Requirement], user: str, links: Links) -> AttemptView:
    return AttemptView(
        round=attempt.round,
        candidate=attempt.candidate,
        strategy=attempt.strategy,
        prompt=attempt.prompt,
        seed=attempt.seed,
        score=attempt.score,
        passed=sum(verdict.answer == "yes" for verdict in attempt.verdicts),
        total=len(attempt.verdicts),
        judged=attempt.judged,
        experience=attempt.experience,
        image=_picture(attempt.image, user, links),
        requirements=_answered(requirements, {verdict.requirement_id: verdict for verdict in attempt.answers}),
    )


def _picture(image: ImageRef, user: str, links: Links) -> Picture:
    return Picture(url=links.image(user, image.sha256), sha256=image.sha256, width=image.width, height=image.height)


def _answered(requirements: Sequence[Requirement], verdicts: Mapping[str, Verdict]) -> list[AnsweredRequirement]:
    """The requirements, each with its verdict if there is one."""
    return [
        AnsweredRequirement(
            id=requirement.id,
            question=requirement.question,
            kind=requirement.kind,
            skill=requirement.skill,
            **_answer_fields(verdicts.get(requirement.id)),
        )
        for requirement in requirements
    ]


def _answer_fields(verdict: Verdict | None) -> dict[str, Any]:
    return verdict.model_dump(include={"answer", "confidence", "reason"}) if verdict is not None else {}


def _review_view(run: Run, links: Links) -> dict[str, Any] | None:
    """The question to a person, with an address for its image."""
    if run.review is None:
        return None
    image = run.review["image"]
    fault = {"fault": without_options(run.review["fault"])} if run.review.get("fault") else {}
    return {**run.review, **fault, "image": {**image, "url": links.image(run.user, image["sha256"])}}
