"""The pocket chat model: language by grammar, sight by the pocket vision model, behind LangChain's chat interface.

Like any other chat model it answers the structured calls and tool calls that the GEMS nodes make, and it knows nothing
but the text and the images in its messages. It has no weights for language: it parses the closed vocabulary
of ``gems.models.pocket.vocabulary`` and rejects words outside it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from PIL import Image

from gems.models.pocket.captions import ARRANGEMENTS, DEPTH_PHRASES, clause, depth_phrase, place_of, terse_caption
from gems.models.pocket.grammar import Question, parse_prompt, parse_question, questions_of
from gems.models.pocket.scene import Scene, SceneSpec, layout
from gems.models.pocket.vocabulary import ATTRIBUTES, NUMBER_WORDS, OBJECTS, PLURALS

__all__ = ["ELEMENTS", "REWRITES", "PocketChatModel", "Tags", "images_in", "seeded"]

ELEMENTS: Final = ("exactly", "arrangement", "place", "places", "depth", "clauses", "sentence", "room", "plain")
"""The elements of a wording that a skill or an experience can teach this model. It uses those that a text names in
backticks and braces, such as `{place}`, and no others."""

_ELEMENT: Final = re.compile(rf"`\{{({'|'.join(ELEMENTS)})\}}`")
_USES: Final[tuple[tuple[str, Callable[[SceneSpec], bool]], ...]] = (
    ("a definite number of things", lambda spec: any(g.count > 1 for g in spec.groups)),
    ("each have a colour, material or pattern", lambda spec: sum(g.attribute > 0 for g in spec.groups) > 1),
    ("a thing has a colour, material or pattern", lambda spec: any(g.attribute > 0 for g in spec.groups)),
    ("things in relation to each other", lambda spec: any(spec.relations)),
    ("names two or more groups", lambda spec: len(spec.groups) > 1),
    ("names any thing", lambda _: True),
)
"""What this model understands of a skill's description: each phrase, and whether it applies to a prompt. A skill whose
description contains none of these phrases is never called."""


class PocketChatModel(BaseChatModel):
    """A chat model that needs no network, no key and no GPU, and knows a small world well."""

    @property
    def _llm_type(self) -> str:
        return "gems-pocket"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vision model's weights; the language part has none."""
        from gems.models.pocket.weights import VISION, folder_fingerprint, weights_folder

        return folder_fingerprint(weights_folder(VISION))

    def load(self) -> None:
        """Load the vision model now instead of at the first image."""
        from gems.models.pocket.vision import pretrained

        pretrained()

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools or schemas, as with any chat model."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ) -> ChatResult:
        descriptions = {tool["function"]["name"]: tool["function"].get("description", "") for tool in tools}
        text = "\n".join(_text(m) for m in messages)
        tags = Tags(text)
        if "Plan" in descriptions:
            calls = self._plan(tags, messages, descriptions)
        elif "Requirements" in descriptions:
            calls = [("Requirements", self._decompose(tags.prompt))]
        elif "Verdicts" in descriptions:
            calls = [("Verdicts", self._verify(tags["questions"], images_in(messages)))]
        elif "Refinement" in descriptions:
            calls = [("Refinement", self._refine(tags))]
        elif "SkillDraft" in descriptions:
            calls = [("SkillDraft", _draft_skill(tags))]
        else:
            calls = []
        answer = AIMessage(
            content="" if calls else self._self_description,
            tool_calls=[
                {"name": name, "args": args, "id": f"call_{uuid.uuid4().hex[:12]}", "type": "tool_call"}
                for name, args in calls
            ],
            usage_metadata=_usage(text, json.dumps([args for _, args in calls])),
            response_metadata=self._metadata(tags, descriptions),
        )
        if not calls and (one_word_question := _ONE_WORD.search(text)) and (images := images_in(messages)):
            probabilities = self._alternatives(one_word_question["question"], images[-1])
            answer = _answer_in_one_word(probabilities, _usage(text, "one"))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    _self_description: ClassVar[str] = (
        "I am the GEMS pocket model. I plan, decompose, verify and refine prompts about 40 objects inside the GEMS "
        "graph, and can do nothing else. Choose a real chat model with --mllm (or the context's mllm) for free "
        "language."
    )

    def _plan(
        self, tags: Tags, messages: Sequence[BaseMessage], descriptions: dict[str, str]
    ) -> list[tuple[str, dict[str, Any]]]:
        skill_answers = [m for m in messages if isinstance(m, ToolMessage)]
        recalled_elements = _recall_wording(tags["memory"])
        # Skills cost a call, so they are skipped if a past run has already taught as much.
        fitting_skills = (
            [] if skill_answers or recalled_elements >= REWRITES[0] else self._fitting(tags.prompt, descriptions)
        )
        if fitting_skills:
            return [(name, {}) for name in fitting_skills]
        elements = _elements("\n".join(map(_text, skill_answers))) | recalled_elements
        return [("Plan", self._worded(tags.prompt, elements, tags.prompt))]

    def _fitting(self, prompt: str, descriptions: dict[str, str]) -> list[str]:
        """The skills that apply to a prompt."""
        spec = parse_prompt(prompt)
        return [name for name, description in descriptions.items() if _is_for(description, spec)]

    def _worded(self, prompt: str, elements: set[str], seed: str) -> dict[str, Any]:
        """A draft for a prompt, worded with some elements, as a form; the same text is imagined by the same seed."""
        return {"prompt": _write_prompt(parse_prompt(prompt), elements, seeded(seed))}

    def _decompose(self, prompt: str) -> dict[str, Any]:
        questions = questions_of(parse_prompt(prompt))
        return {"requirements": [{"question": text, "kind": question.kind} for text, question in questions]}

    def _metadata(self, tags: Tags, forms: Collection[str]) -> dict[str, Any]:
        """What goes with the answer in one of some forms."""
        return {}

    def _verify(self, questions: str, images: Sequence[Image.Image]) -> dict[str, Any]:
        return _verify(questions, images)

    def _alternatives(self, question: str, image: Image.Image) -> dict[str, float]:
        """The answers to a question in one word, with their probabilities."""
        return _alternatives(question, image)

    def _refine(self, tags: Tags) -> dict[str, Any]:
        """Reword the prompt differently at each try: another imagined scene, other elements."""
        attempts = len(tags["history"].splitlines())
        tries = attempts + len(tags["refused"].splitlines())
        elements = set(REWRITES[(tries - 1) % len(REWRITES)])
        failed_questions = tags.failed_questions
        kinds = list(dict.fromkeys(kind for kind, _ in failed_questions)) or ["nothing that I can see"]
        count = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        so_far = (
            f"After {count} the best still failed on {', '.join(kinds)}." if attempts else "Nothing was drawn so far."
        )
        wording = " ".join(f"`{{{name}}}`" for name in ELEMENTS if name in elements)
        return {
            "experience": f"{so_far} Next wording tried: {wording}.",
            "strategy": "rewrite",
            **self._worded(tags.prompt, elements, f"{tags.prompt} {tries}"),
        }


def _is_for(description: str, spec: SceneSpec) -> bool:
    """Whether a skill applies to such a prompt, as far as its description can be understood."""
    purpose = description.partition(" Not ")[0]
    return any(phrase in purpose and applies(spec) for phrase, applies in _USES)


# --- reading messages -----------------------------------------------------------------------------------------------


class Tags:
    """The fenced parts of a conversation, by tag; a missing part is empty."""

    def __init__(self, text: str) -> None:
        self._parts = {tag: html.unescape(body) for tag, body in re.findall(r"<(\w+)>\n(.*?)\n</\1>", text, re.DOTALL)}

    def __getitem__(self, tag: str) -> str:
        return self._parts.get(tag, "")

    @property
    def prompt(self) -> str:
        """The user's prompt."""
        return self["user_prompt"]

    @property
    def failed_questions(self) -> list[tuple[str, str]]:
        """The kinds and questions of what failed on the best attempt."""
        return _FIX.findall(self["best_attempt"])


def _text(message: BaseMessage) -> str:
    return str(message.text)


def images_in(messages: Sequence[BaseMessage]) -> list[Image.Image]:
    """The images of a conversation, in order."""
    blocks = [b for m in messages if isinstance(m.content, list) for b in m.content if isinstance(b, dict)]
    pngs = [base64.b64decode(b["base64"]) for b in blocks if b.get("type") == "image" and "base64" in b]
    return [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]


def _usage(conversation: str, answer: str) -> UsageMetadata:
    """Token counts. The pocket model counts words."""
    inputs, outputs = len(conversation.split()), len(answer.split())
    return UsageMetadata(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs)


def seeded(text: str) -> np.random.Generator:
    """A random generator seeded by a text, so that the same conversation gives the same answer."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def _elements(text: str) -> set[str]:
    return set(_ELEMENT.findall(text))


_SOLVED: Final = re.compile(r"Best generation prompt \(solved\): (.*?)(?: \| |$)", re.MULTILINE)
_SIGNS: Final = {
    "clauses": ";",
    "arrangement": rf"\b(?:{'|'.join(ARRANGEMENTS)})\b",
    "place": r"\b(?:on the|in the|at the) (?:top|left|right|middle|bottom)\b",
    "places": r"\bplaced\b",
    "depth": rf"\b(?:{'|'.join(DEPTH_PHRASES)})\b",
    "exactly": r"\bexactly\b",
}
"""The patterns that show which elements a prompt is worded with."""


def _recall_wording(memory: str) -> set[str]:
    """The elements used by prompts that solved a past run, and those named in a lesson."""
    prompts = "\n".join(_SOLVED.findall(memory))
    elements = {element for element, sign in _SIGNS.items() if re.search(sign, prompts)}
    return elements | _elements(memory)


# --- writing prompts ------------------------------------------------------------------------------------------------


def _write_prompt(spec: SceneSpec, elements: set[str], rng: np.random.Generator) -> str:
    """Word a spec with the given elements; without any, as one plain sentence.

    To name a place or an arrangement, the model imagines a scene that fits the spec and describes it.
    """
    sentence = terse_caption(spec)
    if not elements or "plain" in elements:
        return sentence
    scene = max((layout(spec, rng) for _ in range(_IMAGINED_SCENES if "room" in elements else 1)), key=_room)
    clauses = [
        clause(
            group,
            arrangement=arrangement if "arrangement" in elements else "",
            place=place_of(members) if "place" in elements else "",
            places=[place_of([i]) for i in members] if "places" in elements and group.count > 1 else (),
            depth=depth_phrase(members) if "depth" in elements else "",
            exactly="exactly" in elements,
        )
        for group, members, arrangement in zip(spec.groups, scene.members, scene.arrangements, strict=True)
    ]
    text = "; ".join(clauses)
    return f"{sentence}: {text}" if "sentence" in elements else text


_IMAGINED_SCENES: Final = 8
"""Number of scenes imagined when room matters; the roomiest one is described."""


def _room(scene: Scene) -> float:
    """How easily things in a scene can be told apart: first by groups in rows, then by the smallest thing's size."""
    in_rows = sum(arrangement in ("", "in a row", "in two rows") for arrangement in scene.arrangements)
    return in_rows + min(item.size for item in scene.items)


_FIX: Final = re.compile(r"^fix \((?P<kind>\w+), \w+\): (?P<question>[^?]*\?)", re.MULTILINE)
REWRITES: Final[tuple[frozenset[str], ...]] = (
    frozenset({"clauses", "place", "depth", "arrangement", "room"}),
    frozenset({"clauses", "place", "depth", "arrangement", "room", "exactly"}),
)
"""Wordings to try in turn, starting with the one that helps most often."""


# --- putting experience into words ----------------------------------------------------------------------------------


_CASE: Final = re.compile(
    r"^- wish: (?P<prompt>.*?)(?: \| failed with: (?P<before>.*))? \| passed with: (?P<after>.*)$", re.MULTILINE
)
_USE_BY_KIND: Final = {
    "object": "names two or more groups that have to share the picture",
    "count": "asks for a definite number of things, two or more of a kind",
    "attribute": "says that a thing has a colour, material or pattern",
    "position": "places things in relation to each other",
    "verb": "has things in relation to each other by what they do",
}
_ADVICE: Final = {
    "clauses": "Give every group a clause of its own, with semicolons between them: `{clauses}`.",
    "exactly": "Say that the number is meant: `{exactly}`.",
    "arrangement": "Say how the things of a group are arranged: `{arrangement}`.",
    "place": "Say which part of the picture each group stands in: `{place}`.",
    "places": "Say where each single thing stands: `{places}`.",
    "depth": "Say what is in the foreground and what in the background: `{depth}`.",
}


def _draft_skill(tags: Tags) -> dict[str, Any]:
    """A skill that teaches the elements which most successful prompts use and most failed ones lack."""
    cases = [(m["before"] or m["prompt"], m["after"]) for m in _CASE.finditer(tags["evidence"])]
    kind = tags["kind"].strip()

    def share(sign: str, side: int) -> float:
        return sum(bool(re.search(sign, case[side])) for case in cases) / max(1, len(cases))

    elements = [e for e, sign in _SIGNS.items() if share(sign, 1) >= 0.5 > share(sign, 0)]
    steps = [f"{i}. {_ADVICE[element]}" for i, element in enumerate(elements, start=1)]
    example = f"\n\nExample. Prompt: {cases[0][1]}" if cases else ""
    use = _USE_BY_KIND.get(kind, "names any thing")
    return {
        "name": f"{kind}-wording",
        "description": f"Use when the wish {use}. Not when nothing of that kind is asked for.",
        "body": "\n".join(["Word the prompt so:", "", *(steps or ["1. Say it in one plain sentence."])]) + example,
    }


# --- looking at images ----------------------------------------------------------------------------------------------


def _verify(questions: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    from gems.models.pocket.vision import look

    sight = look(images[-1]) if images else None
    meanings = {
        name: parse_question(text) for name, _, text in (line.partition(":") for line in questions.splitlines())
    }
    numbers = _numbers(sight, [question for question in meanings.values() if question]) if sight else {}
    verdicts = []
    for name, question in meanings.items():
        if sight is None or question is None:
            reason = "no image was shown" if sight is None else "outside the pocket model's vocabulary"
            verdicts.append({"id": name, "answer": "unsure", "confidence": 0.0, "reason": reason})
            continue
        probability, reason = _judge(sight, question, numbers[question.object])
        yes = probability >= 0.5
        verdicts.append(
            {
                "id": name,
                "answer": "yes" if yes else "no",
                "confidence": round(probability if yes else 1 - probability, 3),
                "reason": reason,
            }
        )
    return {"verdicts": verdicts}


_ONE_WORD: Final = re.compile(r"(?P<question>[^\n?]+\?) Answer in one word\.$")
_HOW_MANY: Final = re.compile(r"How many (?P<things>.+) are in the image\?", re.IGNORECASE)


def _alternatives(question: str, image: Image.Image) -> dict[str, float]:
    from gems.models.pocket.vision import look

    sight, how_many = look(image), _HOW_MANY.fullmatch(question)
    things = how_many["things"].lower() if how_many else ""
    if things in PLURALS:
        probabilities = {word: sight.p_count(PLURALS[things], n) for n, word in enumerate(NUMBER_WORDS, start=1)}
        return probabilities | {"other": max(0.0, 1 - sum(probabilities.values()))}
    if meaning := parse_question(question):
        yes = _judge(sight, meaning, _numbers(sight, [meaning])[meaning.object])[0]
        return {"Yes": yes, "No": 1 - yes}
    return {}


def _answer_in_one_word(probabilities: dict[str, float], usage: UsageMetadata) -> AIMessage:
    """Answer a visual question in one token, with the log-probabilities of all alternatives, as servers do."""
    if not probabilities:
        return AIMessage(content="Unknown", usage_metadata=usage)
    likeliest = sorted(probabilities, key=lambda word: -probabilities[word])
    tokens = [{"token": word, "logprob": math.log(max(probabilities[word], 1e-9))} for word in likeliest]
    logprobs = {"content": [{**tokens[0], "top_logprobs": tokens}]}
    return AIMessage(content=likeliest[0], usage_metadata=usage, response_metadata={"logprobs": logprobs})


_PRIOR_ODDS: Final = 5.0
"""Prior odds of the number in the question: the image was made to show it, and the vision model alone takes things that
overlap for one. Tuned on prompts other than those reported."""


def _numbers(sight: Any, questions: Sequence[Question]) -> dict[int, int | None]:
    """How many things of each kind there are, as far as the answers to all of these questions will agree on it.

    None: the likeliest number is one that was asked for, and yet too unlikely for a yes.
    """
    numbers: dict[int, int | None] = {}
    for obj in {question.object for question in questions}:
        counts = {q.count for q in questions if q.kind == "count" and q.object == obj}
        likeliest = max(sorted(counts), key=lambda n: _p_number(sight, obj, n), default=None)
        if likeliest is not None and _p_number(sight, obj, likeliest) >= 0.5:
            numbers[obj] = likeliest
        else:
            count = max(1, sight.count(obj)) if sight.p_object(obj) >= 0.5 else 0
            numbers[obj] = None if count in counts else count
    return numbers


def _p_number(sight: Any, obj: int, n: int) -> float:
    """The probability that there are exactly ``n``, given that the image was made to show as many."""
    p, p_any = sight.p_count(obj, n), sight.p_object(obj)
    odds = _PRIOR_ODDS * p
    p = odds / (odds + 1 - p)
    return float(min(p, p_any) if n and p_any < 0.5 else p)  # there is no number of what is not there


def _judge(sight: Any, question: Question, number: int | None) -> tuple[float, str]:
    """The probability of yes, and a short description of what was seen.

    Args:
        sight: What was seen.
        question: What is asked.
        number: How many things of the question's kind there are, see ``_numbers``.
    """
    if question.attribute and question.kind in ("object", "count"):
        p_things, reason = _judge(sight, replace(question, attribute=0), number)
        return p_things * sight.p_attribute(question.object, question.attribute), reason
    things = f"{_number_of(number, question.object)} seen"
    match question.kind:
        case "object":
            return sight.p_object(question.object), things
        case "count":
            p = _p_number(sight, question.object, question.count)
            if number is not None and number != question.count:  # there is only one number
                p = min(p, 1 - _p_number(sight, question.object, number))
            return p, things if number is not None else f"{things}, but it is unclear how many"
        case "attribute":
            looks = sorted({ATTRIBUTES[a] or "plain" for a in sight.attributes(question.object)})
            return (
                sight.p_attribute(question.object, question.attribute),
                things + (f", {' and '.join(looks)}" if looks else ""),
            )
        case _:
            return sight.p_relation(question.object, question.relation, question.other), things


def _number_of(n: int | None, obj: int) -> str:
    word = OBJECTS[obj]
    if n is None:
        return word.plural
    return f"{NUMBER_WORDS[n - 1] if 1 <= n <= 7 else n or 'no'} {word.singular if n == 1 else word.plural}"
