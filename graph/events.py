"""The custom events of the graph: what ``graph.stream(..., stream_mode="custom")`` yields.

Each event is a dict that JSON can hold; ``event`` names its kind. ``round`` counts from 1, ``candidate`` from 0 within
a round.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from typing_extensions import TypedDict

from gems.graph.state import About, Answer, Box, Kind, Outcome, Strategy

__all__ = [
    "AttemptEvent",
    "Event",
    "ExperienceEvent",
    "ImageEvent",
    "MemoriesEvent",
    "OutcomeEvent",
    "PreviewEvent",
    "PromptEvent",
    "RequirementFields",
    "RequirementsEvent",
    "ReuseEvent",
    "SkillsEvent",
    "StartEvent",
    "StepEvent",
    "VerdictEvent",
]


class RequirementFields(TypedDict):
    """A ``Requirement`` as a dict."""

    id: str
    question: str
    kind: Kind
    skill: str
    words: str
    weight: float
    must: bool
    about: About


class StartEvent(TypedDict):
    """The run begins."""

    event: Literal["start"]
    run_id: str
    seed: int


class ReuseEvent(TypedDict):
    """An earlier run solved the same prompt; its image is returned."""

    event: Literal["reuse"]
    run: str
    """The key of the earlier run."""


class MemoriesEvent(TypedDict):
    """Memory retrieval is done."""

    event: Literal["memories"]
    count: int


class RequirementsEvent(TypedDict):
    """The requirements, from the decomposer; a second list, from ``cross_check``, takes the place of the first."""

    event: Literal["requirements"]
    requirements: list[RequirementFields]
    notes: list[str]
    """What the chat model has the user know about its reading of the prompt; empty in a second list."""


class SkillsEvent(TypedDict):
    """The planner used skills."""

    event: Literal["skills"]
    skills: list[str]
    checks: list[RequirementFields]
    """What the skills check besides the user's requirements."""


class PromptEvent(TypedDict):
    """There is a prompt to draw in this round; another for the same proposal, from ``cross_check``, takes its place."""

    event: Literal["prompt"]
    round: int
    proposal: int
    """Which of the round's prompts it is, from 0."""
    strategy: Strategy
    prompt: str


class StepEvent(TypedDict):
    """A denoising step is done: number ``step`` of ``steps``."""

    event: Literal["step"]
    round: int
    candidate: int
    step: int
    steps: int


class PreviewEvent(TypedDict):
    """A small picture of an unfinished image."""

    event: Literal["preview"]
    round: int
    candidate: int
    step: int
    jpeg: str
    """The JPEG file, in base64."""


class ImageEvent(TypedDict):
    """An image is made and stored."""

    event: Literal["image"]
    round: int
    candidate: int
    strategy: Strategy
    prompt: str
    seed: int
    uri: str
    sha256: str


class VerdictEvent(TypedDict):
    """The verifier answered one requirement for one image."""

    event: Literal["verdict"]
    round: int
    candidate: int
    requirement_id: str
    answer: Answer
    confidence: float
    reason: str
    boxes: tuple[Box, ...]


class AttemptEvent(TypedDict):
    """An image is verified: ``passed`` of the user's ``total`` requirements passed."""

    event: Literal["attempt"]
    round: int
    candidate: int
    score: float
    passed: int
    total: int


class ExperienceEvent(TypedDict):
    """The refiner learned something from a round."""

    event: Literal["experience"]
    round: int
    experience: str


class OutcomeEvent(TypedDict):
    """The run ends."""

    event: Literal["outcome"]
    outcome: Outcome


Event: TypeAlias = (
    StartEvent
    | ReuseEvent
    | MemoriesEvent
    | RequirementsEvent
    | SkillsEvent
    | PromptEvent
    | StepEvent
    | PreviewEvent
    | ImageEvent
    | VerdictEvent
    | AttemptEvent
    | ExperienceEvent
    | OutcomeEvent
)
"""Any of them; ``match event["event"]`` tells a type checker which."""
