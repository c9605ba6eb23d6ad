"""Turns the user's prompt into atomic requirements that can be checked one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from gems.faces import in_thread
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Kind, Requirement
from gems.models.calling import notes_of
from gems.models.capabilities import MOST_TRIES
from gems.models.fencing import fence
from gems.models.lenient import Form, Item, Note, Prose, Text, choice_of, items_of, json_values
from gems.nodes.ask import ask
from gems.nodes.meter import Meter, metered
from gems.nodes.question_checks import Mapped, asks_for_all, is_contradicted, says_optional
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, is_backend_failure, report_failure

__all__ = [
    "MAX_REQUIREMENTS",
    "AddedRequirements",
    "Requirements",
    "answer_of",
    "decomposition",
    "make_decomposer",
    "mapped",
    "numbered",
    "requirements_of",
    "whole_wish",
    "without_requirements",
]

MAX_REQUIREMENTS: Final = 40


_LONGEST_QUESTION: Final = 1000
"""Characters of a question that are accepted; models are asked for less."""

_CALLS_AFTER: Final = 2
"""Chat calls that a second try must leave: the planner's, which runs at the same time, and a look at an image."""


def _is_required(raw: Any) -> bool:
    """False for what says so; true for everything else, and for nothing."""
    return not (raw is False or (isinstance(raw, str) and raw.strip().casefold() in ("false", "no", "optional")))


class AtomicQuestion(Item):
    """One thing to check."""

    reads_prose: ClassVar[bool] = True
    other_names: ClassVar[Mapping[str, Sequence[str]]] = {
        "question": ("requirement", "statement", "check", "criterion", "condition", "question_text", "text", "q"),
        "kind": ("type", "category"),
        "words": ("source", "quote", "phrase"),
        "must": ("required", "is_required"),
    }

    question: Text = Field(
        min_length=1,
        max_length=_LONGEST_QUESTION,
        json_schema_extra={"maxLength": 200},
        description="A yes/no question; yes means it is met.",
    )
    kind: Annotated[Kind, choice_of(get_args(Kind), "other")] = Field(description="What the question is about.")
    words: Note = Field(
        default="",
        json_schema_extra={"maxLength": 120},
        description="The words of the text that it stands for, copied.",
    )
    must: Annotated[bool, BeforeValidator(_is_required)] = Field(
        default=True, description="false only for what the text says may be left out."
    )

    @field_validator("question")
    @classmethod
    def _asked(cls, text: str) -> str:
        """The question; a statement becomes one."""
        if not re.search(r"[^\W\d_]", text) or _NO_REQUIREMENT.fullmatch(text) or _holds_json(text):
            raise ValueError(f"{text[:40]!r} is not a requirement")
        if _MARK.search(text):
            return text
        statement = text.strip(" .")
        return f"{statement}?" if _BEGINS_A_QUESTION.match(text) else f"Does the image show this: {statement}?"

    @classmethod
    def from_pair(cls, key: str, value: Any) -> dict[str, Any]:
        """See ``Item.from_pair``: the key is an id, a kind, or the question itself."""
        is_question = _MARK.search(key)
        if isinstance(value, Mapping):
            return {"question": key, **value} if is_question else dict(value)
        if isinstance(value, str) and (_MARK.search(value) or key.casefold() in get_args(Kind) or _ID.fullmatch(key)):
            return {"question": value, "kind": key}
        if is_question:
            return {"question": key, "kind": value}
        raise ValueError(f"{key!r} is not a question")

    @classmethod
    def from_text(cls, text: str) -> dict[str, Any]:
        """See ``Item.from_text``: the question, or a statement of what the image must show."""
        return {"question": _BULLET.sub("", text, count=1)}

    @classmethod
    def items_in(cls, text: str) -> list[Any]:
        """See ``Item.items_in``; of an answer without JSON, only the lines that are yes/no questions about an image."""
        lines = super().items_in(text)
        if not isinstance(text, Prose):
            return lines
        lines = super().items_in(_without_tags(text))
        matches = [match for line in lines if (match := _QUESTION_LINE.fullmatch(line.strip()))]
        if not matches:
            raise ValueError("it has no questions")
        return [{"question": match["question"], "kind": match["kind"] or match["after"]} for match in matches]


def _holds_json(text: str) -> bool:
    """Whether a text is JSON, such as the arguments of a call, in which there may be questions."""
    return text.lstrip().startswith(("{", "[")) and any(json_values(text))


def _without_tags(text: str) -> str:
    """The text of elements with a question and its kind, in either order, each on its line."""
    first = _FIRST_TAG.search(text)
    is_kind_first = first is not None and first["name"].casefold() != "question"
    joint = _KIND_THEN_QUESTION if is_kind_first else _QUESTION_THEN_KIND
    return _TAG.sub("\n", joint.sub(": " if is_kind_first else " ", text))


_FIRST_TAG: Final = re.compile(r"<(?P<name>question|kind|type|category)>", re.IGNORECASE)
_KIND_THEN_QUESTION: Final = re.compile(r"</(?:kind|type|category)>\s*<question>", re.IGNORECASE)
_QUESTION_THEN_KIND: Final = re.compile(r"</question>\s*<(?:kind|type|category)>", re.IGNORECASE)
_TAG: Final = re.compile(r"</?\w[\w:-]{0,30}>")
_QUESTION_LINE: Final = re.compile(
    r"(?:\W*(?P<kind>[^\W\d_]{4,12})\s*[:=])?\W*(?:[^\W\d_]?\d{1,2}\W+)?"
    r"(?P<question>(?i:is|are|was|were|do|does|has|have)\b(?!.*\b(?i:you|me|i|we|us)\b).{3,400}[?？])\W*(?P<after>\w*)\W*"
)
"""Matches a line with a question about an image, with its kind before or after it."""
_MARK: Final = re.compile(r"[?？؟]")
_ID: Final = re.compile(r"\W*+[^\W\d_]{0,12}+[\W_]*+\d++\W*+")
_NO_REQUIREMENT: Final = re.compile(
    rf"{_ID.pattern}|.*[:：]\s*+|\W*+(?:none|null|nan|undefined|n/a|nothing)\W*+", re.IGNORECASE | re.DOTALL
)
"""Matches an id alone, the words before a list, and words for an empty list."""
_BEGINS_A_QUESTION: Final = re.compile(
    r"\W*(?:is|are|was|were|do|does|did|has|have|can|how|what|which|who|where|will)\b", re.IGNORECASE
)
_BULLET: Final = re.compile(r"(?<!\s)\s*+(?:[-*•·]\s+|\(?(?:[^\W\d_]\s?)?\d{1,2}[.):]\s*)+")


class Requirements(Form):
    """Everything that the image must show, one atomic question each."""

    other_names: ClassVar[Mapping[str, Sequence[str]]] = {"requirements": ("questions", "checks")}

    requirements: Annotated[
        list[AtomicQuestion],
        Field(min_length=1, max_length=MAX_REQUIREMENTS),
        items_of(AtomicQuestion, MAX_REQUIREMENTS),
    ]


class AddedRequirements(Requirements):
    """What was missing, one atomic question each: the form of the repair, which may find that nothing is."""

    model_config = ConfigDict(title="Requirements")

    requirements: Annotated[
        list[AtomicQuestion], Field(max_length=MAX_REQUIREMENTS), items_of(AtomicQuestion, MAX_REQUIREMENTS)
    ]


def make_decomposer(resources: Resources) -> Node:
    """The node that fills ``requirements``."""

    async def decomposer(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        context, prompt = resources.context(runtime), state["prompt"]
        with metered(state, "decomposer", context) as meter:
            meter.reserved = _CALLS_AFTER
            model = await in_thread(resources.chat, context, "decomposer")
            answer = await ask(meter, model, Requirements, decomposition(prompt))
            requirements, notes = numbered(requirements_of(prompt, answer.form)), notes_of(answer.message)
            if answer.in_part and not _is_all_called_for(prompt, requirements, answer.message):
                requirements, cut_notes = await _continued(meter, model, prompt, requirements)
                notes += cut_notes
        rows = [requirement.model_dump() for requirement in requirements]
        runtime.stream_writer({"event": "requirements", "requirements": rows, "notes": notes})
        return GemsState(requirements=requirements, usage=meter.usage, notes=notes)

    return decomposer


def _is_all_called_for(prompt: str, requirements: Sequence[Requirement], message: AIMessage) -> bool:
    """Whether a call is whole although a limit ended the answer: a gateway may have closed what was cut off."""
    is_whole = bool(message.tool_calls) and not message.invalid_tool_calls
    return is_whole and asks_for_all(prompt, [mapped(prompt, requirement) for requirement in requirements])


async def _continued(
    meter: Meter, model: BaseChatModel, prompt: str, requirements: Sequence[Requirement]
) -> tuple[list[Requirement], list[str]]:
    """The requirements with those that were cut off, which are asked for once; notes, if they may still lack some."""
    conversation = [*decomposition(prompt), AIMessage(answer_of(requirements)), HumanMessage(CUT_OFF)]
    try:
        with meter.optional(_CALLS_AFTER):
            if meter.must_stop():
                return whole_wish(prompt, requirements)
            # The answer before was sent back as often as that helps.
            answer = await ask(meter, model, AddedRequirements, conversation, earlier=MOST_TRIES)
    except Exception as error:
        if not is_backend_failure(error):
            raise
        return whole_wish(prompt, requirements)
    together = numbered([*requirements, *requirements_of(prompt, answer.form)])
    return whole_wish(prompt, together) if answer.in_part else (together, [])


def whole_wish(prompt: str, requirements: Sequence[Requirement]) -> tuple[list[Requirement], list[str]]:
    """Requirements whose rest was cut off, with one for the whole prompt, and a note of that for the user."""
    words = " ".join(prompt.split())
    rest = Requirement(id="r", question=WHOLE.format(prompt=words), kind="other", words=words)
    return numbered([*requirements[: MAX_REQUIREMENTS - 1], rest]), [_CUT_OFF_NOTE]


def decomposition(prompt: str) -> list[BaseMessage]:
    """The task of breaking down a prompt, as messages for a chat model."""
    return [SystemMessage(DECOMPOSER), *EXAMPLES, HumanMessage(fence("user_prompt", prompt))]


def requirements_of(prompt: str, answer: Requirements) -> list[Requirement]:
    """The questions of an answer, each once, without those that contradict the prompt, if others are left."""
    items = {" ".join(item.question.split()): item for item in answer.requirements}
    requirements = [_requirement(prompt, question, item) for question, item in items.items()]
    sound = [requirement for requirement in requirements if not is_contradicted(mapped(prompt, requirement))]
    return (sound or requirements)[:MAX_REQUIREMENTS]


def _requirement(prompt: str, question: str, item: AtomicQuestion) -> Requirement:
    is_optional = not item.must and says_optional(prompt)
    words = " ".join(item.words.split())
    return Requirement(
        id="r",
        question=question,
        kind=item.kind,
        words=words if Mapped(prompt, question, words).places else "",
        weight=_WEIGHT_OF_A_WISH if is_optional else 1.0,
        must=not is_optional,
    )


def mapped(prompt: str, requirement: Requirement) -> Mapped:
    """A requirement's question, beside the words of the prompt that it stands for."""
    return Mapped(prompt, requirement.question, requirement.words)


def numbered(requirements: Sequence[Requirement]) -> list[Requirement]:
    """The requirements with ids in their order: r1, r2, ...; each question once."""
    unique = {requirement.question: requirement for requirement in reversed(requirements)}
    in_order = list(reversed(unique.values()))[:MAX_REQUIREMENTS]
    return [requirement.model_copy(update={"id": f"r{i}"}) for i, requirement in enumerate(in_order, start=1)]


def answer_of(requirements: Sequence[Requirement]) -> str:
    """The requirements as a chat model would hand them in."""
    items = [AtomicQuestion(question=r.question, kind=r.kind, words=r.words, must=r.must) for r in requirements]
    return Requirements(requirements=items).model_dump_json(exclude_defaults=True)


_WEIGHT_OF_A_WISH: Final = 0.5
"""The weight of what the user would like, beside 1 for what an image must show."""


def without_requirements(state: GemsState, error: NodeError) -> Goto:
    """End the run before it draws: without requirements, nothing can be checked."""
    return report_failure(state, error, "cross_check", outcome="failed")


CUT_OFF: Final = (
    "Your answer was cut off there. Add the questions that are missing after that, and hand in nothing else."
)
WHOLE: Final = "Does the image show all of this: {prompt}?"
_CUT_OFF_NOTE: Final = (
    "the chat model's list of requirements was cut off or broken: what it lacks is checked by one question about the "
    "whole prompt (look at the chat option max_tokens, or the model's own limit)"
)

DECOMPOSER = """\
You break down what an image must show, given between user_prompt tags, into atomic yes/no questions for its \
inspection, each about one thing only, each answered "yes" exactly if the image is right. For every kind of thing, in \
the order of the text:
- object: is it there at all?
- count: is there exactly the number asked for? "a" is exactly one.
- attribute: one question for each colour, material or pattern that is named for it.
- position or verb: one question if its place or action in relation to another thing is named.
- text: does the image show the text to be written, letter by letter as it was given?
Then style and other for all else. Copy into words the words of the text that the question stands for, in the text's \
language. What must not be there is asked so that "yes" means that it is absent. If the text names a thing by what is \
known of it, ask for the thing. Invent nothing, leave nothing out, ask nothing twice."""

_EXAMPLES: Final[tuple[tuple[str, tuple[tuple[Kind, str, str], ...]], ...]] = (
    (
        "four striped lamps chasing a boy, in the style of Monet",
        (
            ("object", "lamps", "Are there any lamps in the image?"),
            ("count", "four lamps", "Are there exactly four lamps in the image?"),
            ("attribute", "striped lamps", "Are the lamps striped?"),
            ("verb", "lamps chasing a boy", "Are the lamps chasing the boy?"),
            ("object", "boy", "Are there any boys in the image?"),
            ("count", "a boy", "Is there exactly one boy in the image?"),
            ("style", "in the style of Monet", "Is the image in the style of Monet?"),
        ),
    ),
    (
        "a kite, and a silver frog jumping over two tables behind a boat",
        (
            ("object", "kite", "Are there any kites in the image?"),
            ("count", "a kite", "Is there exactly one kite in the image?"),
            ("object", "frog", "Are there any frogs in the image?"),
            ("count", "a frog", "Is there exactly one frog in the image?"),
            ("attribute", "silver frog", "Is the frog silver?"),
            ("verb", "frog jumping over two tables", "Is the frog jumping over the tables?"),
            ("object", "tables", "Are there any tables in the image?"),
            ("count", "two tables", "Are there exactly two tables in the image?"),
            ("position", "tables behind a boat", "Are the tables behind the boat?"),
            ("object", "boat", "Are there any boats in the image?"),
            ("count", "a boat", "Is there exactly one boat in the image?"),
        ),
    ),
)
"""Prompts and answers, shown as turns of the conversation: a weak model follows an example better than a rule."""


def _turns() -> Iterator[BaseMessage]:
    for prompt, questions in _EXAMPLES:
        yield HumanMessage(fence("user_prompt", prompt))
        answer = Requirements(
            requirements=[
                AtomicQuestion(question=question, kind=kind, words=words) for kind, words, question in questions
            ]
        )
        yield AIMessage(answer.model_dump_json(exclude_defaults=True))


EXAMPLES: Final = tuple(_turns())
