"""The pocket chat model: language by grammar, sight by the pocket vision model, behind LangChain's chat interface.

It answers the structured calls and tool calls that the GEMS nodes make, as any other chat model does, from the text
and the images in its messages and from nothing else. It has no weights for language: it parses the closed vocabulary
of ``gems.models.pocket.vocabulary``, and says so when a word is outside it.
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

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

__all__ = ["ELEMENTS", "PocketChatModel"]

ELEMENTS: Final = ("exactly", "arrangement", "place", "places", "depth", "clauses", "sentence", "room", "plain")
"""What a skill or an experience can teach this model about wording: it uses the elements that a text names in
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
"""What this model understands of a skill's description: phrases, and the wishes that they mean. A skill whose
description has none of them is one that it cannot read: it leaves it."""


class PocketChatModel(BaseChatModel):
    """A chat model that needs no network, no key and no GPU, and knows a small world well."""

    @property
    def _llm_type(self) -> str:
        return "gems-pocket"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vision model's weights, which are all the weights there are."""
        from gems.models.pocket.weights import VISION, folder_fingerprint, weights_folder

        return folder_fingerprint(weights_folder(VISION))

    def load(self) -> None:
        """Load the vision model now, rather than at the first image."""
        from gems.models.pocket.vision import pretrained

        pretrained()

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools or schemas, as for any chat model."""
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
        offered = {tool["function"]["name"]: tool["function"].get("description", "") for tool in tools}
        text = "\n".join(_text(m) for m in messages)
        tags = _Tags(text)
        if "Plan" in offered:
            calls = self._plan(tags, messages, offered)
        elif "Requirements" in offered:
            calls = [("Requirements", _decompose(tags.prompt))]
        elif "Verdicts" in offered:
            calls = [("Verdicts", _verify(tags["questions"], _images(messages)))]
        elif "Refinement" in offered:
            calls = [("Refinement", _refine(tags))]
        elif "SkillDraft" in offered:
            calls = [("SkillDraft", _draft_skill(tags))]
        else:
            calls = []
        answer = AIMessage(
            content="" if calls else SELF_DESCRIPTION,
            tool_calls=[
                {"name": name, "args": args, "id": f"call_{uuid.uuid4().hex[:12]}", "type": "tool_call"}
                for name, args in calls
            ],
            usage_metadata=_usage(text, json.dumps([args for _, args in calls])),
        )
        if not calls and (asked := _ONE_WORD.search(text)) and (images := _images(messages)):
            answer = _answer_in_one_word(asked["question"], images[-1], _usage(text, "one"))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _plan(
        self, tags: _Tags, messages: Sequence[BaseMessage], offered: dict[str, str]
    ) -> list[tuple[str, dict[str, Any]]]:
        spec = parse_prompt(tags.prompt)
        read = [m for m in messages if isinstance(m, ToolMessage)]
        recalled = _recall_wording(tags["memory"])
        # Skills cost a call: a past run that teaches all that they teach makes them unnecessary.
        fitting = (
            []
            if read or recalled >= _REWRITES[0]
            else [name for name, description in offered.items() if _is_for(description, spec)]
        )
        if fitting:
            return [(name, {}) for name in fitting]
        taught = _elements("\n".join(map(_text, read))) | recalled
        return [("Plan", {"prompt": _write_prompt(spec, taught, _rng(tags.prompt))})]


def _is_for(description: str, spec: SceneSpec) -> bool:
    """Whether a skill is for such a wish, as far as its description can be read."""
    use = description.partition(" Not ")[0]
    return any(phrase in use and holds(spec) for phrase, holds in _USES)


SELF_DESCRIPTION: Final = (
    "I am the GEMS pocket model. I plan, decompose, verify and refine prompts about 40 objects inside the GEMS graph, "
    "and can do nothing else. Choose a real chat model with --mllm (or the context's mllm) for free language."
)


# --- reading messages -----------------------------------------------------------------------------------------------


class _Tags:
    """The fenced parts of a conversation, by tag; a missing one is empty."""

    def __init__(self, text: str) -> None:
        self._parts = {tag: html.unescape(body) for tag, body in re.findall(r"<(\w+)>\n(.*?)\n</\1>", text, re.DOTALL)}

    def __getitem__(self, tag: str) -> str:
        return self._parts.get(tag, "")

    @property
    def prompt(self) -> str:
        return self["user_prompt"]


def _text(message: BaseMessage) -> str:
    return str(message.text)


def _images(messages: Sequence[BaseMessage]) -> list[Image.Image]:
    blocks = [b for m in messages if isinstance(m.content, list) for b in m.content if isinstance(b, dict)]
    pngs = [base64.b64decode(b["base64"]) for b in blocks if b.get("type") == "image" and "base64" in b]
    return [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]


def _usage(asked: str, answered: str) -> UsageMetadata:
    """Tokens, counted as words: the pocket model's own unit."""
    n, m = len(asked.split()), len(answered.split())
    return UsageMetadata(input_tokens=n, output_tokens=m, total_tokens=n + m)


def _rng(text: str) -> np.random.Generator:
    """Randomness that follows from what was read: the same conversation gives the same answer."""
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
"""How one sees from a prompt which elements it is worded with."""


def _recall_wording(memory: str) -> set[str]:
    """The elements of the prompts that solved a past run, and those that a lesson names."""
    prompts = "\n".join(_SOLVED.findall(memory))
    seen = {element for element, sign in _SIGNS.items() if re.search(sign, prompts)}
    return seen | _elements(memory)


# --- writing prompts ------------------------------------------------------------------------------------------------


def _write_prompt(spec: SceneSpec, taught: set[str], rng: np.random.Generator) -> str:
    """Word a spec with the elements that were taught; with none, in one plain sentence.

    Where a place or an arrangement has to be named, the model imagines one scene that fits, and describes that.
    """
    sentence = terse_caption(spec)
    if not taught or "plain" in taught:
        return sentence
    scene = max((layout(spec, rng) for _ in range(_LOOKS if "room" in taught else 1)), key=_room)
    clauses = [
        clause(
            group,
            arrangement=arrangement if "arrangement" in taught else "",
            place=place_of(members) if "place" in taught else "",
            places=[place_of([i]) for i in members] if "places" in taught and group.count > 1 else (),
            depth=depth_phrase(members) if "depth" in taught else "",
            exactly="exactly" in taught,
        )
        for group, members, arrangement in zip(spec.groups, scene.members, scene.arrangements, strict=True)
    ]
    text = "; ".join(clauses)
    return f"{sentence}: {text}" if "sentence" in taught else text


_LOOKS: Final = 8
"""Scenes imagined where room matters."""


def _room(scene: Scene) -> float:
    """How well the things of a scene can be told apart: groups in rows first, then the size of the smallest thing."""
    in_rows = sum(arrangement in ("", "in a row", "in two rows") for arrangement in scene.arrangements)
    return in_rows + min(item.size for item in scene.items)


def _decompose(prompt: str) -> dict[str, Any]:
    asked = questions_of(parse_prompt(prompt))
    return {"requirements": [{"question": text, "kind": question.kind} for text, question in asked]}


_FIX: Final = re.compile(r"^fix \((?P<kind>\w+), \w+\): (?P<question>[^?]*\?)", re.MULTILINE)
_REWRITES: Final[tuple[frozenset[str], ...]] = (
    frozenset({"clauses", "place", "depth", "arrangement", "room"}),
    frozenset({"clauses", "place", "depth", "arrangement", "room", "exactly"}),
)
"""Wordings to try in turn, from the one that most often helps."""


def _refine(tags: _Tags) -> dict[str, Any]:
    """Word the wish in another way each time: another imagined scene, other elements."""
    spec = parse_prompt(tags.prompt)
    tries = len(tags["history"].splitlines())
    elements = set(_REWRITES[(tries - 1) % len(_REWRITES)])
    failed = _FIX.findall(tags["best_attempt"])
    kinds = list(dict.fromkeys(kind for kind, _ in failed)) or ["nothing that I can see"]
    so_far = "1 attempt" if tries == 1 else f"{tries} attempts"
    named = " ".join(f"`{{{name}}}`" for name in ELEMENTS if name in elements)
    return {
        "experience": f"After {so_far} the best still failed on {', '.join(kinds)}. Next wording tried: {named}.",
        "strategy": "rewrite",
        "prompt": _write_prompt(spec, elements, _rng(f"{tags.prompt} {tries}")),
    }


# --- putting experience into words ----------------------------------------------------------------------------------


_CASE: Final = re.compile(
    r"^- wish: (?P<wish>.*?)(?: \| failed with: (?P<before>.*))? \| passed with: (?P<after>.*)$", re.MULTILINE
)
_USE_OF: Final = {
    "object": "names two or more groups that have to share the picture",
    "count": "asks for a definite number of things, two or more of a kind",
    "attribute": "says that a thing has a colour, material or pattern",
    "position": "places things in relation to each other",
    "verb": "has things in relation to each other by what they do",
}
_SAYING: Final = {
    "clauses": "Give every group a clause of its own, with semicolons between them: `{clauses}`.",
    "exactly": "Say that the number is meant: `{exactly}`.",
    "arrangement": "Say how the things of a group are arranged: `{arrangement}`.",
    "place": "Say which part of the picture each group stands in: `{place}`.",
    "places": "Say where each single thing stands: `{places}`.",
    "depth": "Say what is in the foreground and what in the background: `{depth}`.",
}


def _draft_skill(tags: _Tags) -> dict[str, Any]:
    """A skill of the elements that most prompts which worked are worded with, and most before them were not."""
    cases = [(m["before"] or m["wish"], m["after"]) for m in _CASE.finditer(tags["evidence"])]
    kind = tags["kind"].strip()

    def share(sign: str, side: int) -> float:
        return sum(bool(re.search(sign, case[side])) for case in cases) / max(1, len(cases))

    taught = [e for e, sign in _SIGNS.items() if share(sign, 1) >= 0.5 > share(sign, 0)]
    steps = [f"{i}. {_SAYING[element]}" for i, element in enumerate(taught, start=1)]
    example = f"\n\nExample. Prompt: {cases[0][1]}" if cases else ""
    use = _USE_OF.get(kind, "names any thing")
    return {
        "name": f"{kind}-wording",
        "description": f"Use when the wish {use}. Not when nothing of that kind is asked for.",
        "body": "\n".join(["Word the prompt so:", "", *(steps or ["1. Say it in one plain sentence."])]) + example,
    }


# --- looking at images ----------------------------------------------------------------------------------------------


def _verify(questions: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    from gems.models.pocket.vision import look

    sight = look(images[-1]) if images else None
    verdicts = []
    for line in questions.splitlines():
        name, _, text = line.partition(":")
        question = parse_question(text)
        if sight is None or question is None:
            reason = "no image was shown" if sight is None else "outside the pocket model's vocabulary"
            verdicts.append({"id": name, "answer": "unsure", "confidence": 0.0, "reason": reason})
            continue
        probability, reason = _judge(sight, question)
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


def _answer_in_one_word(question: str, image: Image.Image, usage: UsageMetadata) -> AIMessage:
    """A visual question answered with one token, and the log-probabilities of all its alternatives, as servers do."""
    from gems.models.pocket.vision import look

    sight, counted = look(image), _HOW_MANY.fullmatch(question)
    things = counted["things"].lower() if counted else ""
    if things in PLURALS:
        chances = {word: sight.p_count(PLURALS[things], n) for n, word in enumerate(NUMBER_WORDS, start=1)}
        chances["other"] = max(0.0, 1 - sum(chances.values()))
    elif meaning := parse_question(question):
        yes = _judge(sight, meaning)[0]
        chances = {"Yes": yes, "No": 1 - yes}
    else:
        return AIMessage(content="Unknown", usage_metadata=usage)
    likeliest = sorted(chances, key=lambda word: -chances[word])
    tokens = [{"token": word, "logprob": math.log(max(chances[word], 1e-9))} for word in likeliest]
    logprobs = {"content": [{**tokens[0], "top_logprobs": tokens}]}
    return AIMessage(content=likeliest[0], usage_metadata=usage, response_metadata={"logprobs": logprobs})


_PRIOR_ODDS: Final = 5.0
"""How much likelier the number asked about is than any other before one looks, since the image was made to show it.
Sight alone takes things that cover each other for one. Chosen on other prompts than those that are reported."""


def _judge(sight: Any, question: Question) -> tuple[float, str]:
    """The probability of yes, and what was seen."""
    if question.attribute and question.kind in ("object", "count"):
        bare, reason = _judge(sight, replace(question, attribute=0))
        return bare * sight.p_attribute(question.object, question.attribute), reason
    seen = sight.count(question.object)
    many = _number_of(seen, question.object)
    match question.kind:
        case "object":
            return sight.p_object(question.object), f"{many} seen"
        case "count":
            odds = _PRIOR_ODDS * (p := sight.p_count(question.object, question.count))
            p = odds / (odds + 1 - p)
            return p, f"{_number_of(question.count, question.object) if p >= 0.5 else many} seen"
        case "attribute":
            looks = sorted({ATTRIBUTES[a] or "plain" for a in sight.attributes(question.object)})
            return (
                sight.p_attribute(question.object, question.attribute),
                f"{many} seen" + (f", {' and '.join(looks)}" if looks else ""),
            )
        case _:
            return sight.p_relation(question.object, question.relation, question.other), f"{many} seen"


def _number_of(n: int, obj: int) -> str:
    word = OBJECTS[obj]
    return f"{NUMBER_WORDS[n - 1] if 1 <= n <= 7 else n or 'no'} {word.singular if n == 1 else word.plural}"
