"""Runs as the service shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gems.graph.state import Answer, GemsState, Kind, Outcome, Strategy, Usage, best_attempt
from gems.serve.ledger import Run, Status
from gems.serve.links import Links
from gems.serve.settings import RunSettings

__all__ = ["AnsweredRequirement", "Picture", "RunList", "RunRequest", "RunView", "run_view", "state_view"]


class RunRequest(BaseModel):
    """A run to begin."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=4000, description="What the image should show.")
    settings: RunSettings = Field(default_factory=RunSettings, description="What differs from the service's own.")
    thread: str = Field(
        default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$", description="A name of yours for related runs."
    )


class Picture(BaseModel):
    """An image. The address needs no key, and expires."""

    url: str
    sha256: str
    width: int
    height: int


class AnsweredRequirement(BaseModel):
    """A requirement, and what was seen."""

    id: str
    question: str
    kind: Kind
    skill: str = ""
    answer: Answer | None = None
    confidence: float | None = None
    reason: str = ""


class AttemptView(BaseModel):
    """One image that was made."""

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
    created_at: float = Field(description="Seconds since 1970, like the others.")
    started_at: float | None
    ended_at: float | None
    outcome: Outcome | None = None
    score: float = 0.0
    image: Picture | None = Field(default=None, description="The best so far.")
    best: int | None = Field(default=None, description="Its place in attempts.")
    attempts: list[AttemptView] = []
    requirements: list[AnsweredRequirement] = Field(default=[], description="As they stand for the best attempt.")
    draft: str = Field(default="", description="The prompt that is being drawn.")
    skills: list[str] = []
    memories: int = 0
    usage: Usage = Usage()
    review: dict[str, Any] | None = Field(default=None, description="What a person is asked.")
    errors: list[str] = []
    report: str | None = Field(default=None, description="Address of a page with all of it, once it ended.")
    error: str | None = None
    error_kind: Literal["input", "backend"] | None = None


class RunList(BaseModel):
    """A page of runs, the latest first."""

    object: Literal["list"] = "list"
    data: list[RunView]
    next: int | None = Field(description="Give it as before, for the next page; null at the end.")


def run_view(run: Run, links: Links, state: GemsState | None = None) -> RunView:
    """A run, from its record if it ended, and from the state that it has reached if it has not."""
    record = run.record if run.record is not None else state_view(state) if state else {}
    attempts = [_attempt(a, record, run.user, links) for a in record.get("attempts", [])]
    best = record.get("best")
    review = run.review
    if review is not None:
        image = review["image"]
        review = {**review, "image": {**image, "url": links.image(run.user, image["sha256"])}}
    return RunView(
        id=run.id,
        thread=run.thread,
        prompt=run.prompt,
        status=run.status,
        created_at=run.created,
        started_at=run.started,
        ended_at=run.ended,
        outcome=record.get("outcome") if run.has_ended else None,
        score=record.get("score", 0.0),
        image=attempts[best].image if best is not None else None,
        best=best,
        attempts=attempts,
        requirements=attempts[best].requirements if best is not None else _answered(record, {}),
        draft=record.get("draft", ""),
        skills=record.get("skills", []),
        memories=len(record.get("memories", [])),
        usage=Usage.model_validate(record.get("usage", {})),
        review=review,
        errors=record.get("errors", []),
        report=links.report(run.user, run.id) if run.record is not None else None,
        error=run.error,
        error_kind=run.error_kind,
    )


def state_view(state: GemsState) -> dict[str, Any]:
    """What a record would hold if the run ended here."""
    attempts = state.get("attempts") or []
    best = best_attempt(attempts)
    return {
        "attempts": [a.model_dump(mode="json") for a in attempts],
        "best": attempts.index(best) if best else None,
        "score": best.score if best else 0.0,
        "requirements": [r.model_dump(mode="json") for r in state.get("requirements") or []],
        "checks": [r.model_dump(mode="json") for r in state.get("checks") or []],
        "draft": state.get("draft") or "",
        "skills": state.get("skills") or [],
        "memories": state.get("memories") or [],
        "usage": (state.get("usage") or Usage()).model_dump(mode="json"),
        "errors": state.get("errors") or [],
    }


def _attempt(attempt: dict[str, Any], record: dict[str, Any], user: str, links: Links) -> AttemptView:
    verdicts = {v["requirement_id"]: v for v in (*attempt["verdicts"], *attempt.get("checks", []))}
    answers = [v["answer"] for v in attempt["verdicts"]]
    image = attempt["image"]
    return AttemptView(
        round=attempt["round"],
        candidate=attempt["candidate"],
        strategy=attempt["strategy"],
        prompt=attempt["prompt"],
        seed=attempt["seed"],
        score=attempt["score"],
        passed=answers.count("yes"),
        total=len(answers),
        judged=attempt.get("judged", ""),
        experience=attempt["experience"],
        image=Picture(
            url=links.image(user, image["sha256"]),
            sha256=image["sha256"],
            width=image["width"],
            height=image["height"],
        ),
        requirements=_answered(record, verdicts),
    )


def _answered(record: dict[str, Any], verdicts: dict[str, Any]) -> list[AnsweredRequirement]:
    asked = [*record.get("requirements", []), *record.get("checks", [])]
    return [
        AnsweredRequirement(
            id=r["id"],
            question=r["question"],
            kind=r["kind"],
            skill=r["skill"],
            **{k: verdicts[r["id"]][k] for k in ("answer", "confidence", "reason") if r["id"] in verdicts},
        )
        for r in asked
    ]
