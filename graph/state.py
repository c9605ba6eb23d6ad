"""The vocabulary of a run: what the nodes read and write, and nothing else.

Everything here is small and serialisable under LangGraph's strict msgpack: pixels never enter the state, only
references to images do. The types import nothing of the project, so that every other module may import them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from langchain_core.messages import BaseMessage
from langgraph.graph.message import add_messages
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, model_validator
from typing_extensions import TypedDict

__all__ = [
    "Answer",
    "AskedFor",
    "Attempt",
    "Budget",
    "Failure",
    "GemsInput",
    "GemsOutput",
    "GemsState",
    "ImageRef",
    "Kind",
    "Memory",
    "Outcome",
    "Prices",
    "Requirement",
    "Review",
    "Strategy",
    "Usage",
    "Verdict",
    "all_asked",
    "best_attempt",
    "score_verdicts",
]

Kind = Literal["object", "count", "attribute", "position", "verb", "text", "style", "other"]
"""What a requirement is about: GenEval 2's five skills, then text, style and the rest."""

Answer = Literal["yes", "no", "unsure"]

Outcome = Literal["solved", "accepted", "rounds", "budget", "stalled", "cancelled", "failed"]
"""Why a run ended. ``solved``: every requirement passed. ``accepted``: a person took it. ``rounds``, ``budget``,
``stalled``: the best effort within the limits. ``cancelled``: stopped from outside. ``failed``: a backend gave up after
its retries. Every one of them returns the best image made so far."""

Strategy = Literal["plan", "rewrite", "reseed", "edit", "restart", "person", "reuse"]
"""Where an attempt's prompt comes from. ``plan``: the planner. ``rewrite``: the refiner changed the wording of the best
attempt. ``reseed``: the same prompt again, other noise. ``edit``: the best attempt's image, changed where it is wrong.
``restart``: the refiner started from the user's words. ``person``: a person wrote it. ``reuse``: an earlier run's
image, which solved just this."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Requirement(_Frozen):
    """One atomic thing that the image must show, as a question that is answered "yes" when it does."""

    id: str = Field(description="Short and unique within the run: r1, r2, ...")
    question: str = Field(description="A yes/no question about the image; yes means that the requirement is met.")
    kind: Kind = Field(description="What the question is about.")
    skill: str = Field(default="", description="The skill that adds it; empty for what the user asked for.")


class Verdict(_Frozen):
    """The verifier's answer to one requirement."""

    requirement_id: str
    answer: Answer
    confidence: float = Field(ge=0, le=1, description="How sure the verifier is of its answer, in [0, 1].")
    reason: str = Field(default="", description="What was seen, in a few words.")

    @property
    def probability(self) -> float:
        """The probability that the requirement is met, in [0, 1]; one half where the verifier is unsure."""
        return {"yes": self.confidence, "no": 1 - self.confidence, "unsure": 0.5}[self.answer]


class ImageRef(_Frozen):
    """Where an image lies. The bytes are in the image store; the reference is all that the state holds."""

    uri: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(gt=0, description="Pixels.")
    height: int = Field(gt=0, description="Pixels.")
    media_type: str = "image/png"


class Attempt(_Frozen):
    """One image that was made and, once the verifier has seen it, what it was worth."""

    round: int = Field(ge=1)
    candidate: int = Field(ge=0, description="Index among the images of the same round.")
    strategy: Strategy = "plan"
    prompt: str
    seed: int
    image: ImageRef
    edited_from: str = Field(default="", description="SHA-256 of the image that this one is an edit of, if it is one.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="On what the user asked for.")
    checks: tuple[Verdict, ...] = Field(default=(), description="On what skills ask for besides.")
    score: float = Field(default=0.0, ge=0, le=1, description="See score_verdicts.")
    judged: Literal["", "accepted", "rejected"] = Field(default="", description="What a person said, if one was asked.")
    experience: str = Field(default="", description="What the refiner learned from this attempt, at most 100 words.")

    @property
    def verified(self) -> bool:
        """Whether the verifier has looked at it."""
        return bool(self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether every requirement of the user's was answered yes."""
        return self.verified and all(v.answer == "yes" for v in self.verdicts)

    @property
    def answers(self) -> tuple[Verdict, ...]:
        """Everything that the verifier answered, on the user's requirements first."""
        return (*self.verdicts, *self.checks)

    @property
    def flawless(self) -> bool:
        """Whether, besides, no skill's check was answered no, and no person said no.

        A check that nobody can answer holds nothing up.
        """
        return self.passed and self.judged != "rejected" and all(v.answer != "no" for v in self.checks)


class Failure(_Frozen):
    """A generation prompt that did not work."""

    prompt: str
    missed: tuple[str, ...] = Field(default=(), description="Questions that its image did not pass.")


class Memory(_Frozen):
    """What past runs for one wish taught, which memory retrieval found to bear on this prompt."""

    key: str = Field(description="The experience's, see gems.memory.experience.")
    run: str = Field(default="", description="The best of the runs that it was made from.")
    similarity: float = Field(description="Cosine similarity of the two prompts, in [-1, 1].")
    relevance: float = Field(default=0.0, description="What it was chosen by: meaning, demands, usefulness and model.")
    usefulness: float = Field(
        default=0.0, description="What runs that it was retrieved for were worth more than the others, in [-1, 1]."
    )
    prompt: str = Field(description="What the user asked for then.")
    solved: bool
    best_prompt: str = Field(description="The generation prompt of the best attempt.")
    experience: str = Field(default="", description="What was learned then.")
    avoid: tuple[Failure, ...] = Field(default=(), description="Prompts that did not work.")
    count: int = Field(default=1, ge=1, description="How many runs it was made from.")
    solved_count: int = Field(default=0, ge=0)


class Usage(_Frozen):
    """What a run has spent so far. ``seconds`` is time spent inside nodes, so that a pause costs nothing."""

    chat_calls: NonNegativeInt = 0
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0
    images: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


class Prices(_Frozen):
    """What a run's spending costs, in whatever currency: what a provider's price list says."""

    image: NonNegativeFloat = Field(default=0.0, title="Image", description="Price of one image.")
    prompt: NonNegativeFloat = Field(
        default=0.0, title="Prompt tokens", description="Price of a million tokens that chat models read."
    )
    completion: NonNegativeFloat = Field(
        default=0.0, title="Completion tokens", description="Price of a million tokens that chat models write."
    )

    def cost(self, usage: Usage) -> float:
        """What was spent, in money."""
        tokens = usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion
        return usage.images * self.image + tokens / 1e6


class Budget(_Frozen):
    """Upper limits on what a run may spend; None is no limit. Checked before every spend."""

    chat_calls: int | None = Field(default=None, ge=1, title="Chat calls", description="Most chat model calls.")
    tokens: int | None = Field(default=None, ge=1, title="Tokens", description="Most prompt and completion tokens.")
    images: int | None = Field(default=None, ge=1, title="Images", description="Most images made.")
    seconds: float | None = Field(default=None, gt=0, title="Seconds", description="Most seconds of work in nodes.")
    cost: float | None = Field(default=None, gt=0, title="Cost", description="Most money, by the prices below.")
    prices: Prices = Field(default_factory=Prices, title="Prices", description="What the models cost.")

    def exhausted(self, usage: Usage, *, chat_calls: int = 0, images: int = 0) -> str | None:
        """Name the limit that spending this much more would break, or None if there is room for it.

        Tokens and seconds cannot be known before a call: they count as exhausted once the limit is reached.
        """
        if self.chat_calls is not None and usage.chat_calls + chat_calls > self.chat_calls:
            return "chat calls"
        if self.images is not None and usage.images + images > self.images:
            return "images"
        if self.tokens is not None and usage.tokens >= self.tokens:
            return "tokens"
        if self.seconds is not None and usage.seconds >= self.seconds:
            return "seconds"
        if self.cost is not None:
            spent = self.prices.cost(usage)
            # A sum of prices is a float: a limit that is just reached is not yet broken.
            if spent >= self.cost or spent + images * self.prices.image > self.cost * (1 + 1e-9):
                return "cost"
        return None


def score_verdicts(verdicts: Sequence[Verdict]) -> float:
    """Geometric mean of the probabilities that the requirements are met, in [0, 1]; 0 for no verdicts.

    Soft-TIFA's geometric mean (GenEval 2, arXiv 2512.16853): one missing requirement drags the whole score down, as it
    should when all of them have to hold.
    """
    if not verdicts:
        return 0.0
    return math.exp(sum(math.log(max(v.probability, 1e-3)) for v in verdicts) / len(verdicts))


def best_attempt(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt to return: one that passed if there is one, then the highest score, then the earliest.

    A person's word comes before that. What skills check decides among those that passed, and nothing else.
    """
    said = {"accepted": 1, "": 0, "rejected": -1}
    return max(
        attempts,
        key=lambda a: (said[a.judged], a.passed, a.flawless, a.score, -a.round, -a.candidate),
        default=None,
    )


class AskedFor(_Frozen):
    """A requirement as a person words it."""

    question: str = Field(
        min_length=3, max_length=300, description="A yes/no question about the image; yes means that it is met."
    )
    kind: Kind = "other"


class Review(_Frozen):
    """A person's answer to an image."""

    action: Literal["accept", "reject", "edit_prompt", "edit_requirements", "stop"] = Field(
        title="Action",
        description="accept: this is it. reject: the refiner tries again. edit_prompt: draw this prompt next. "
        "edit_requirements: check against these. stop: keep the best so far.",
    )
    comment: str = Field(default="", max_length=1000, title="Comment", description="reject: what is wrong, in words.")
    prompt: str = Field(
        default="", max_length=4000, title="Prompt", description="edit_prompt: the next generation prompt."
    )
    requirements: tuple[AskedFor, ...] = Field(
        default=(), max_length=100, title="Requirements", description="edit_requirements: all of them, new and old."
    )
    image: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        title="Image",
        description="accept: the SHA-256 of the image that is taken. Empty: the one that was shown.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """What an action needs is there."""
        if self.action == "edit_prompt" and not self.prompt.strip():
            raise ValueError("edit_prompt needs a prompt")
        if self.action == "edit_requirements" and not self.requirements:
            raise ValueError("edit_requirements needs requirements")
        return self


class GemsInput(TypedDict):
    """What a run is given."""

    prompt: str
    """What the user wants to see, in the user's own words."""


class GemsOutput(TypedDict, total=False):
    """What a run returns."""

    image: ImageRef | None
    """The best image, or None if none could be made."""
    score: float
    """The best attempt's score, in [0, 1]."""
    outcome: Outcome | None
    """Why the run ended."""
    attempts: list[Attempt]
    """Every image made, in order."""
    requirements: list[Requirement]
    """What the image was checked against."""
    checks: list[Requirement]
    """What the skills that were used check besides."""
    usage: Usage
    """What the run spent."""
    errors: list[str]
    """What went wrong on the way and was worked around or ended the run, one line each."""


class GemsState(GemsOutput, total=False):
    """Everything a run knows; also what a node returns: the keys that it changes.

    Only ``planning``, ``messages``, ``usage`` and ``errors`` have reducers: they gather what several nodes contribute.
    """

    prompt: str
    """The user's words, tidied."""
    run_id: str
    """Made anew by intake for each prompt; a thread may hold several runs."""
    seed: int
    """The seed of the first image; later ones are derived from it."""
    memories: list[Memory]
    """What past runs have to say about this prompt, the most relevant first."""
    planning: Annotated[list[BaseMessage], add_messages]
    """The planner's conversation with its skills."""
    offered: dict[str, str]
    """The SHA-256 of each skill that the planner is offered in this run, by name; see ``gems.skills.snapshots``."""
    skills: list[str]
    """Names of the skills that the planner used, in order."""
    draft: str
    """The generation prompt for the next image."""
    refused: list[str]
    """Drafts that the image model's provider refused to draw, in order."""
    strategy: Strategy
    """Where ``draft`` comes from."""
    in_review: bool
    """Whether a person is asked about what was just verified."""
    review: Review | None
    """What a person last said, until it is done."""
    messages: Annotated[list[BaseMessage], add_messages]
    """For people who watch: the prompt, and a small picture of each attempt, where thumbnails are on."""
    usage: Annotated[Usage, operator.add]
    errors: Annotated[list[str], operator.add]


def all_asked(state: GemsState) -> list[Requirement]:
    """Everything that an image is checked against: the user's requirements, then what skills ask besides."""
    return [*state["requirements"], *(state.get("checks") or [])]
