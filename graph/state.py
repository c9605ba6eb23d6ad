"""The vocabulary of a run: what the nodes read and write, and nothing else.

Everything here is small and can be serialised under LangGraph's strict msgpack. The state holds references to images,
never pixels. Only ``gems.errors`` and ``gems.graph.budget`` are imported of the project, so that every other module can
import these types.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NotRequired, Self, TypeAlias, get_args

from langchain_core.messages import BaseMessage
from langgraph.graph.message import add_messages
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)
from typing_extensions import TypedDict, get_type_hints

from gems.errors import InputError
from gems.graph.budget import MAX_PROMPTS, Budget, Prices, TokenPrices
from gems.graph.budget import Frozen as _Frozen

__all__ = [
    "SCHEMA",
    "About",
    "Answer",
    "AskedFor",
    "Assignment",
    "Attempt",
    "Box",
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
    "Proposal",
    "Requirement",
    "Review",
    "Strategy",
    "TokenPrices",
    "Turn",
    "Usage",
    "Verdict",
    "all_asked",
    "best_attempt",
    "check_schema",
    "checkpoint_types",
    "proposals_of",
    "round_of",
    "score_verdicts",
]

SCHEMA: Final = 2
"""The version of the state's layout, in each checkpoint. Checkpoints without a number are older, and can be read."""

Kind = Literal["object", "count", "attribute", "position", "verb", "text", "style", "other"]
"""What a requirement is about: GenEval 2's five skills, then text, style and anything else."""

About = Literal["ask", "keep", "reference"]
"""Why a requirement holds. ``ask``: the prompt asks for it. ``keep``: it is so in the image to be changed, and stays.
``reference``: the thing in a reference image appears as it is there."""

Answer = Literal["yes", "no", "unsure"]

_Relative: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Box: TypeAlias = tuple[_Relative, _Relative, _Relative, _Relative]
"""A place in an image: left, top, right and bottom edge, relative to the image's width and height, in [0, 1]."""

Outcome = Literal["solved", "accepted", "rounds", "budget", "stalled", "cancelled", "failed"]
"""Why a run ended. ``solved``: every requirement passed. ``accepted``: a person accepted the image. ``rounds``,
``budget``, ``stalled``: the best effort within the limits. ``cancelled``: stopped from outside. ``failed``: a backend
still failed after its retries. Every outcome returns the best image so far."""

Strategy = Literal["plan", "rewrite", "reseed", "edit", "restart", "asked", "person", "reuse"]
"""Where an attempt's prompt comes from. ``plan``: the planner. ``rewrite``: the refiner reworded the best attempt.
``reseed``: the same prompt with other noise. ``edit``: the best attempt's image, changed where it is wrong.
``restart``: the refiner started again from the user's prompt. ``asked``: the user's own words, beside another prompt.
``person``: a person wrote it. ``reuse``: the image of an
earlier run that solved the same prompt."""


class Requirement(_Frozen):
    """One thing that the image must show, as a question that is answered "yes" if it does."""

    id: str = Field(description="Short and unique within the run: r1, r2, ...")
    question: str = Field(description="A yes/no question about the image; yes means that the requirement is met.")
    kind: Kind = Field(description="What the question is about.")
    skill: str = Field(default="", description="The skill that adds it; empty for what the user asked for.")
    words: str = Field(default="", description="The words of the prompt that it stands for.")
    weight: float = Field(default=1.0, gt=0, description="How much it counts, compared with the others.")
    must: bool = Field(default=True, description="Whether an image without it is wrong.")
    about: About = Field(default="ask", description="Whether it was asked for, is to be kept, or is of a reference.")


class Verdict(_Frozen):
    """The verifier's answer to one requirement."""

    requirement_id: str
    answer: Answer
    confidence: float = Field(ge=0, le=1, description="How sure the verifier is of its answer, in [0, 1].")
    reason: str = Field(default="", description="What was seen, in a few words.")
    boxes: tuple[Box, ...] = Field(default=(), description="Where it was seen.")

    @property
    def probability(self) -> float:
        """The probability that the requirement is met, in [0, 1]; one half where the verifier is unsure."""
        return {"yes": self.confidence, "no": 1 - self.confidence, "unsure": 0.5}[self.answer]

    @property
    def is_known(self) -> bool:
        """Whether it says anything: a question that got no answer is unsure, with no confidence at all."""
        return self.answer != "unsure" or self.confidence > 0


class ImageRef(_Frozen):
    """A reference to an image. The bytes are in the image store."""

    uri: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(gt=0, description="Pixels.")
    height: int = Field(gt=0, description="Pixels.")
    media_type: str = "image/png"


class Attempt(_Frozen):
    """One image and, once the verifier has seen it, its verdicts and score."""

    round: int = Field(ge=1)
    candidate: int = Field(ge=0, description="Index among the images of the same round.")
    strategy: Strategy = "plan"
    prompt: str
    negative_prompt: str = Field(
        default="",
        exclude_if=lambda prompt: not prompt,
        description="What the image model was told must not be there, if it takes that.",
    )
    seed: int
    image: ImageRef
    edited_from: str = Field(default="", description="SHA-256 of the image that this one is an edit of, if it is one.")
    generator: str = Field(default="", description="Name of the generator that drew it; empty: the run's own.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="Verdicts on the user's requirements.")
    checks: tuple[Verdict, ...] = Field(default=(), description="Verdicts on the checks that skills add.")
    score: float = Field(default=0.0, ge=0, le=1, description="See score_verdicts.")
    quality: float = Field(
        default=0.5,
        ge=0,
        le=1,
        exclude_if=lambda quality: quality == 0.5,
        description="How free it is of faults that no requirement is about: artefacts, anatomy, illegible letters; "
        "in [0, 1], one half where that is unknown. It decides only among attempts that passed.",
    )
    flaws: str = Field(default="", exclude_if=lambda flaws: not flaws, description="Such faults, in a few words.")
    judged: Literal["", "accepted", "rejected"] = Field(
        default="", description="A person's decision, if one was asked."
    )
    experience: str = Field(default="", description="What the refiner learned from this attempt, at most 100 words.")

    @property
    def verified(self) -> bool:
        """Whether the verifier has looked at it. Otherwise its score says nothing."""
        return bool(self.verdicts)

    @property
    def is_answered(self) -> bool:
        """Whether every requirement of the user has an answer, so that it can be compared with other attempts."""
        return self.verified and all(v.is_known for v in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether every requirement of the user was answered yes."""
        return self.verified and all(v.answer == "yes" for v in self.verdicts)

    @property
    def answers(self) -> tuple[Verdict, ...]:
        """All verdicts: those on the user's requirements, then those on skill checks."""
        return (*self.verdicts, *self.checks)

    @property
    def flawless(self) -> bool:
        """Whether it passed, no skill check was answered no, and no person rejected it.

        An unanswered check does not block.
        """
        return self.passed and self.judged != "rejected" and all(v.answer != "no" for v in self.checks)


class Proposal(_Frozen):
    """A prompt that a round draws. A round with several deals its images out among them, in turn."""

    prompt: str = Field(min_length=1, description="The generation prompt.")
    strategy: Strategy = Field(default="person", description="Where the prompt comes from.")


class Failure(_Frozen):
    """A generation prompt that did not work."""

    prompt: str
    missed: tuple[str, ...] = Field(default=(), description="Questions that its image did not pass.")


class Memory(_Frozen):
    """What earlier runs of one prompt taught, retrieved because it bears on the present prompt."""

    key: str = Field(description="Key of the experience, see gems.memory.experience.")
    run: str = Field(default="", description="Best of the runs that it summarises.")
    similarity: float = Field(description="Cosine similarity of the two prompts, in [-1, 1].")
    relevance: float = Field(
        default=0.0, description="Rank: similarity of meaning and demands, usefulness, same model."
    )
    usefulness: float = Field(
        default=0.0, description="How much better runs fared that retrieved it than runs that did not, in [-1, 1]."
    )
    prompt: str = Field(description="The user's prompt of those runs.")
    solved: bool
    best_prompt: str = Field(description="The generation prompt of the best attempt.")
    experience: str = Field(default="", description="The lesson of those runs.")
    avoid: tuple[Failure, ...] = Field(default=(), description="Prompts that did not work.")
    count: int = Field(default=1, ge=1, description="How many runs it summarises.")
    solved_count: int = Field(default=0, ge=0)


def _storable(count: int) -> int:
    if count >= 2**53:
        raise ValueError("no run counts so much")
    return count


_Count: TypeAlias = Annotated[NonNegativeInt, AfterValidator(_storable)]
"""What was counted: below what JavaScript reads exactly, and far below what storage refuses."""
_Amount: TypeAlias = Annotated[NonNegativeFloat, AllowInfNan(False)]


class Usage(_Frozen):
    """What a run has spent so far. ``seconds`` counts time inside nodes, so a pause costs nothing."""

    chat_calls: _Count = 0
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    images: _Count = 0
    seconds: _Amount = 0.0
    extra_cost: FiniteFloat = Field(
        default=0.0,
        exclude_if=lambda cost: cost == 0,
        description="What tokens of roles with prices of their own cost beyond the common prices; it may be negative.",
    )
    lost_tokens: _Count = Field(
        default=0,
        exclude_if=lambda tokens: tokens == 0,
        description="About what calls took beyond that whose answers were lost or cancelled; limits count it.",
    )
    lost_cost: _Amount = Field(
        default=0.0, exclude_if=lambda cost: cost == 0, description="About what those tokens cost."
    )
    killed_images: _Count = Field(
        default=0,
        exclude_if=lambda images: images == 0,
        description="The most of the images that steps had asked for which a kill interrupted; nobody has them.",
    )
    killed_calls: _Count = Field(
        default=0,
        exclude_if=lambda calls: calls == 0,
        description="The most of the chat calls that steps had made which a kill interrupted.",
    )

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})

    def since(self, earlier: Usage) -> Usage:
        """What was spent after an earlier state of the same count; nothing where less is counted now."""
        more = {name: max(0, getattr(self, name) - getattr(earlier, name)) for name in Usage.model_fields}
        return Usage(**more | {"extra_cost": self.extra_cost - earlier.extra_cost})

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def counted_tokens(self) -> int:
        """What limits count: the tokens that are known, and an estimate of the others."""
        return self.tokens + self.lost_tokens

    @property
    def lost_in_words(self) -> str:
        """The tokens that are no part of the others since their answers were lost; empty if there are none."""
        return f"about {self.lost_tokens:,} more tokens for answers that were lost" if self.lost_tokens else ""

    @property
    def killed_in_words(self) -> str:
        """What a run has counted because it was in flight at a kill; empty if there was nothing."""
        counts = {"image": self.killed_images, "chat call": self.killed_calls}
        parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count]
        return f"of these, in flight at a kill: up to {' and '.join(parts)}" if parts else ""


def score_verdicts(verdicts: Sequence[Verdict]) -> float:
    """Geometric mean of the probabilities that the requirements are met, in [0, 1]; 0 without verdicts.

    This is the geometric mean of Soft-TIFA (GenEval 2, arXiv 2512.16853). One missing requirement lowers the whole
    score, as it should where all of them have to hold.
    """
    if not verdicts:
        return 0.0
    return math.exp(sum(math.log(max(v.probability, 1e-3)) for v in verdicts) / len(verdicts))


def best_attempt(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt to return: one that passed if there is one, then the highest score, then the earliest.

    A person's decision comes first. Skill checks, and then quality, decide only among attempts that passed. An image
    that nobody has looked at comes last, behind rejected ones: nothing speaks for it.
    """
    decision = {"accepted": 1, "": 0, "rejected": -1}
    return max(
        attempts,
        key=lambda a: (
            a.verified or a.judged != "",
            decision[a.judged],
            a.passed,
            a.flawless,
            a.passed and a.quality,
            a.score,
            -a.round,
            -a.candidate,
        ),
        default=None,
    )


def _merged(attempts: Sequence[Attempt], newer: Sequence[Attempt | Mapping[str, Any]]) -> list[Attempt]:
    """The attempts with new ones, and with others in the place of those of the same round and candidate.

    Nodes that draw at the same time each hand in their own images, which are kept whatever becomes of the others.
    """
    merged = {(attempt.round, attempt.candidate): attempt for attempt in attempts}
    for attempt in map(Attempt.model_validate, newer):  # who edits a state in Studio hands in JSON
        merged[attempt.round, attempt.candidate] = attempt
    return [merged[place] for place in sorted(merged)]


def _told_once(earlier: Sequence[str], newer: Sequence[str]) -> list[str]:
    """The notes with new ones; each is there once in a run, whichever tasks and rounds hand it in."""
    return [*dict.fromkeys([*earlier, *newer])]


def _latest(_: int, newer: int) -> int:
    """The number of the round, which each of the tasks that draw it hands in."""
    return newer


class AskedFor(_Frozen):
    """A requirement as a person words it."""

    question: str = Field(
        min_length=3, max_length=300, description="A yes/no question about the image; yes means that it is met."
    )
    kind: Kind = "other"


class Review(_Frozen):
    """A person's decision about an image."""

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
        """Require the fields that the action needs."""
        if self.action == "edit_prompt" and not self.prompt.strip():
            raise ValueError("edit_prompt needs a prompt")
        if self.action == "edit_requirements" and not self.requirements:
            raise ValueError("edit_requirements needs requirements")
        return self


class Turn(_Frozen):
    """An earlier prompt of the same conversation, and what came of it."""

    prompt: str = Field(max_length=4000, description="The user's words.")
    requirements: tuple[Requirement, ...] = Field(default=(), max_length=100, description="What they asked for.")
    image: ImageRef | None = Field(default=None, description="The image that answered them; None if there was none.")


class GemsInput(TypedDict):
    """What a run is given."""

    prompt: str
    """The user's prompt, in their own words."""
    turns: NotRequired[list[Turn]]
    """Earlier prompts of the conversation, the oldest first: at most 20. They come back in the output as they are; a
    thread keeps them until others are given."""


class GemsOutput(TypedDict, total=False):
    """What a run returns."""

    image: ImageRef | None
    """The best image, or None if none could be made."""
    score: float
    """The best attempt's score, in [0, 1]."""
    outcome: Outcome | None
    """Why the run ended."""
    attempts: Annotated[list[Attempt], _merged]
    """Every image made, in order."""
    requirements: list[Requirement]
    """The user's requirements, against which every image is checked."""
    checks: list[Requirement]
    """The checks that the skills add."""
    usage: Usage
    """What the run spent."""
    errors: list[str]
    """Failures that the run worked around, or that ended it, one line each."""
    notes: list[str]
    """What models have the user know although nothing failed, such as what of the prompt they left out, a line each."""
    turns: list[Turn]
    """The earlier prompts that the run was given."""


class GemsState(GemsOutput, total=False):
    """Everything that a run knows. A node returns the keys that it changes.

    Only ``attempts``, ``round``, ``refused``, ``undrawn``, ``planning``, ``messages``, ``usage``, ``errors`` and
    ``notes`` have reducers: several nodes contribute to them. What replaces one of them whole is an ``Overwrite``.
    """

    schema: int
    """The ``SCHEMA`` of the version that began the run; missing in older checkpoints."""
    prompt: str
    """The user's prompt with its white space tidied."""
    run_id: str
    """Intake makes a new one for each prompt; a thread can hold several runs."""
    seed: int
    """The seed of the first image; later ones are derived from it."""
    memories: list[Memory]
    """Experience of earlier runs that bears on this prompt, the most relevant first."""
    planning: Annotated[list[BaseMessage], add_messages]
    """The planner's conversation with its skills."""
    offered: dict[str, str]
    """The SHA-256 of each skill that the planner is offered in this run, by name; see ``gems.skills.snapshots``."""
    skills: list[str]
    """Names of the skills that the planner used, in order."""
    round: Annotated[int, Field(ge=0), _latest]
    """Number of the round that is drawn or was drawn last, from 1; 0 in older checkpoints."""
    proposals: list[Proposal]
    """The prompts that the round draws, at most 16; of a first round, the planner's draft comes first."""
    parts: list[list[str]]
    """What became of the prompt in the draft, as the planner says: words of the prompt, words of the draft.

    Lists of two, since checkpoints keep no tuples."""
    compared: bool
    """Whether the draft was compared with the requirements; missing in checkpoints from before there was a comparison.

    Such a thread may have sent its decomposer straight to the generator, which then waits for the comparison."""
    refused: Annotated[list[str], operator.add]
    """Prompts that the image model's provider refused to draw, in order."""
    undrawn: Annotated[list[Literal["refused", "budget", "failed"]], operator.add]
    """Why proposals of the round have no image."""
    in_review: bool
    """Whether a person is asked about the images that were just verified."""
    review: Review | None
    """A person's last decision, until it has been carried out."""
    messages: Annotated[list[BaseMessage], add_messages]
    """For people who watch in Studio: the prompt, and a small picture of each attempt if thumbnails are on."""
    usage: Annotated[Usage, operator.add]
    errors: Annotated[list[str], operator.add]
    notes: Annotated[list[str], _told_once]
    draft: str
    """The prompt to draw, in checkpoints from before there were ``proposals``; not written any more."""
    strategy: Strategy
    """Where ``draft`` comes from."""


class Assignment(TypedDict):
    """What the generator or the editor is sent: one proposal, and what it takes of the run's state to draw it."""

    run_id: str
    seed: int
    round: Annotated[int, Field(ge=1)]
    proposal: Proposal
    place: int
    """Which of the round's proposals it is, from 0."""
    places: int
    """How many proposals the round has."""
    edit_from: Attempt | None
    """The attempt whose image is edited; None to draw from noise."""
    requirements: list[Requirement]
    checks: list[Requirement]
    usage: Usage


def proposals_of(state: GemsState) -> list[Proposal]:
    """The prompts that the round draws; none while the planner has not handed in its draft.

    Raises:
        ValidationError: Somebody has edited the state, and put in what is no proposal.
        InputError: Or more proposals than a round may have.
    """
    if (count := len(state.get("proposals") or [])) > MAX_PROMPTS:
        raise InputError(f"the state has {count:,} proposals; a round draws {MAX_PROMPTS} at most")
    proposals = [Proposal.model_validate(proposal) for proposal in state.get("proposals") or []]
    if not proposals and (draft := state.get("draft")):
        return [Proposal(prompt=draft, strategy=state["strategy"])]
    return proposals


def round_of(state: GemsState) -> int:
    """Number of the round that is drawn or was drawn last, from 1."""
    attempts = state.get("attempts") or []
    # Older checkpoints do not say it: a verified attempt ends its round.
    return state.get("round") or (attempts[-1].round + int(attempts[-1].verified) if attempts else 1)


def all_asked(state: GemsState) -> list[Requirement]:
    """Everything that an image is checked against: the user's requirements, then the checks of skills."""
    return [*state["requirements"], *(state.get("checks") or [])]


def check_schema(state: Mapping[str, Any]) -> None:
    """Check that this version can go on with a state that was read from a checkpoint.

    Raises:
        InputError: A newer version wrote it. LangGraph would load it all the same, without what this version ignores.
    """
    schema = state.get("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InputError(
            f"a newer version of GEMS began this thread: its state has schema {schema!r}, and this version reads up to "
            f"{SCHEMA}; go on with the version that began it, or start a new thread"
        )


def checkpoint_types() -> tuple[type[BaseModel], ...]:
    """The types of GEMS in checkpoints, for a checkpointer that loads only types that it knows.

    Give them to the serialiser of your own checkpointer, and it loads the state of GEMS without warnings, and under
    ``LANGGRAPH_STRICT_MSGPACK=true``::

        JsonPlusSerializer(allowed_msgpack_modules=[*checkpoint_types(), ...])

    The list is made from the annotations of the state, so that it is complete.
    """
    # A resumed review may hold the answers that came before, as LangGraph's own pending writes.
    models = {model for hint in get_type_hints(GemsState).values() for model in _models_in(hint)}
    return tuple(sorted(models, key=lambda model: model.__name__))


def _models_in(hint: object) -> Iterator[type[BaseModel]]:
    """The models of this module in a type annotation, and in the annotations of their fields."""
    if isinstance(hint, type) and issubclass(hint, _Frozen):
        yield hint
        for field in hint.model_fields.values():
            yield from _models_in(field.annotation)
    for argument in get_args(hint):
        yield from _models_in(argument)
