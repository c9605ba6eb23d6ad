"""The open chat model: language by tables, sight by the open vision model, behind LangChain's chat interface.

It makes the structured calls and tool calls of any chat model for prompts in any language that it has a table for. Its
drafts are in English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
from PIL import Image

from gems.models.calling import NOTES, UNMENDABLE
from gems.models.open.draft_wording import (
    BACKGROUND_PHRASES,
    NUMBERS,
    clause,
    depth_of,
    joined,
    noun_of,
    place_phrase,
    terse,
)
from gems.models.open.drawn_parts import has_scenery
from gems.models.open.neighbours import nearest_thing
from gems.models.open.questions import Question, Who, parse_question, questions_of
from gems.models.open.stage import Scene, layout, place_of, strangeness
from gems.models.open.things import LOOK_NAMES, THINGS, VERBS
from gems.models.open.weights import VISION, open_weights
from gems.models.open.wish import Wish
from gems.models.open.wish_reading import Reading, read
from gems.models.pocket.chat import PocketChatModel, Tags, seeded
from gems.models.pocket.weights import folder_fingerprint

__all__ = ["OpenChatModel", "expected_of", "judge_all"]

_USES: Final[tuple[tuple[str, Callable[[Wish], bool]], ...]] = (
    ("a definite number of things", lambda wish: any(g.count > 1 for g in wish.groups)),
    ("each have a colour, material or pattern", lambda wish: sum(g.look > 0 for g in wish.groups) > 1),
    ("a thing has a colour, material or pattern", lambda wish: any(g.look > 0 for g in wish.groups)),
    ("things in relation to each other", lambda wish: bool(wish.relations)),
    ("names two or more groups", lambda wish: len(wish.groups) > 1),
    ("something must not be there", lambda wish: bool(wish.absent)),
    ("a text is written", lambda wish: any(g.text for g in wish.groups)),
    ("names any thing", lambda _: True),
)
"""What this model understands of a skill's description: each phrase, and whether it applies to a wish."""

_KINDS: Final = {"size": "attribute", "place": "position", "background": "other", "absent": "other"}
"""The kinds of requirements for kinds of questions that have no name of their own there."""


class OpenChatModel(PocketChatModel):
    """A chat model that needs no network, no key and no GPU, and knows almost any simple scene."""

    _self_description: ClassVar[str] = (
        f"I am the GEMS open model. I plan, decompose, verify and refine prompts about {len(THINGS)} things inside the "
        "GEMS graph, and can do nothing else. Choose a real chat model with --mllm (or the context's mllm) for free "
        "language."
    )

    @property
    def _llm_type(self) -> str:
        return "gems-open"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vision model's weights; the language part has none."""
        return folder_fingerprint(open_weights(VISION))

    def load(self) -> None:
        """Load the vision model now instead of at the first image."""
        from gems.models.open.eyes import pretrained

        pretrained()

    def _fitting(self, prompt: str, descriptions: dict[str, str]) -> list[str]:
        wish = _read(prompt).wish
        purposes = {name: description.partition(" Not ")[0] for name, description in descriptions.items()}
        return [
            name
            for name, text in purposes.items()
            if any(phrase in text and applies(wish) for phrase, applies in _USES)
        ]

    def _worded(self, prompt: str, elements: set[str], seed: str) -> dict[str, Any]:
        """The draft says the whole prompt in other words, but for what must not be there, which it does not name."""
        draft = _draft(_read(prompt).wish, elements, seeded(seed))
        return {"prompt": draft, "parts": [{"words": prompt, "phrase": draft}]}

    def _decompose(self, prompt: str) -> dict[str, Any]:
        reading = _read(prompt)
        items: list[dict[str, Any]] = [
            {"question": text, "kind": _kind_of(question)} for text, question in questions_of(reading.wish)
        ]
        return {"requirements": [*items, *_undrawn(reading, prompt)]}

    def _metadata(self, tags: Tags, forms: Collection[str]) -> dict[str, Any]:
        if "Requirements" in forms:
            notes = _read(tags.prompt).notes
            return {NOTES: list(notes)} if notes else {}
        failed_questions = {question for _, question in tags.failed_questions}
        if "Refinement" not in forms or not failed_questions:
            return {}
        reading = _read(tags.prompt)
        undrawn = {item["question"]: item["words"] for item in _undrawn(reading, tags.prompt)}
        if not failed_questions <= undrawn.keys():
            return {}
        failed_words = [words for question, words in undrawn.items() if question in failed_questions]
        undrawable = [words for words in failed_words if words != tags.prompt]
        more = (
            f" (they draw one background, and it is {reading.drawn_scene})" if {*undrawable} & {*reading.scenes} else ""
        )
        reasons = [f"the open models cannot draw {', '.join(map(repr, undrawable))}{more}"] if undrawable else []
        reasons += reading.denials if tags.prompt in failed_words else ()
        return {UNMENDABLE: [f"all else is right, and no other prompt helps: {'; '.join(reasons)}"]}

    def _verify(self, questions: str, images: Sequence[Image.Image]) -> dict[str, Any]:
        if not images:
            return {
                "verdicts": [_unsure(line.partition(":")[0], "no image was shown") for line in questions.splitlines()]
            }
        from gems.models.open.eyes import pretrained

        meanings = {
            name: parse_question(text) for name, _, text in (line.partition(":") for line in questions.splitlines())
        }
        understood = {name: question for name, question in meanings.items() if question}
        answers = dict(
            zip(understood, judge_all(pretrained().look(images[-1]), list(understood.values())), strict=True)
        )
        return {"verdicts": [_verdict(name, answers.get(name)) for name in meanings]}

    def _alternatives(self, question: str, image: Image.Image) -> dict[str, float]:
        from gems.models.open.eyes import pretrained

        sight = pretrained().look(image)
        if match := _HOW_MANY.fullmatch(question):
            counted = parse_question(f"Are there any {match['things']} in the image?")
            if counted is None:
                return {}
            probabilities = {word: sight.p_count(counted.who, n) for n, word in enumerate(NUMBERS, start=1)}
            return probabilities | {"other": max(0.0, 1 - sum(probabilities.values()))}
        meaning = parse_question(question)
        if meaning is None:
            return {}
        yes = judge_all(sight, [meaning])[0][0]
        return {"Yes": yes, "No": 1 - yes}


_HOW_MANY: Final = re.compile(r"How many (?P<things>.+) are in the image\?", re.IGNORECASE)


def _read(prompt: str) -> Reading:
    return read(prompt, nearest_thing)


def _undrawn(reading: Reading, prompt: str) -> list[dict[str, Any]]:
    """The requirements of what is drawn as something else, or not at all: they can never pass.

    The words may be of any form and language. What is denied and cannot be seen is asked for with the whole prompt.
    """
    names = dict(reading.stand_ins) | dict.fromkeys(reading.missing, "")
    return [
        *(
            {
                "question": f'Does the image really show "{word}"?',
                "kind": "other" if name in BACKGROUND_PHRASES else "object",
                "words": word,
            }
            for word, name in names.items()
        ),
        *(
            [{"question": f'Does the image really keep to "{prompt}"?', "kind": "other", "words": prompt}]
            if reading.denials
            else []
        ),
    ]


def _kind_of(question: Question) -> str:
    if question.kind == "relation":
        return "verb" if question.name in VERBS else "position"
    return _KINDS.get(question.kind, question.kind)


# --- writing drafts -------------------------------------------------------------------------------------------------


def _draft(wish: Wish, elements: set[str], rng: np.random.Generator) -> str:
    """Word a wish with the given elements; without any, as one plain sentence.

    What must not be there is not named, as the generator draws what it reads, and a background is always. To name a
    place or an arrangement, the model imagines a scene that fits the wish and describes it.
    """
    wish = replace(wish, background=wish.background or _setting(wish), absent=())
    if not elements or "plain" in elements or not wish.groups:
        return terse(wish)
    score = _room if "room" in elements else _naturalness
    scene = max((layout(wish, rng) for _ in range(_IMAGINED_SCENES)), key=score)
    clauses = [
        clause(
            group,
            count=len(members),
            arrangement=arrangement if "arrangement" in elements else "",
            place=place_of(members) if "place" in elements else "",
            places=[place_of([i]) for i in members] if "places" in elements and 1 < len(members) < 6 else (),
            depth=depth_of(members) if "depth" in elements else "",
            exactly="exactly" in elements,
        )
        for group, members, arrangement in zip(scene.wish.groups, scene.members, scene.arrangements, strict=True)
    ]
    # A scene too small for all relations has lost some; the draft has them all.
    return f"{joined(wish, clauses, '; ')}; {BACKGROUND_PHRASES[wish.background]}"


def _setting(wish: Wish) -> str:
    """The background for a wish that names none: a usual one, unless it shows what must not be there."""
    usual = _usual_setting(wish)
    return "plain" if any(has_scenery(usual, thing) for thing in wish.absent) else usual


def _usual_setting(wish: Wish) -> str:
    """The background where such things are mostly seen."""
    kinds = {THINGS[group.thing].kind for group in wish.groups}
    homes = {THINGS[group.thing].home for group in wish.groups}
    own = [_SETTINGS[name] for group in wish.groups if (name := THINGS[group.thing].name) in _SETTINGS]
    if own:
        return own[0]
    if "water" in homes:
        return "sea"
    if homes and homes <= {"sky", "air"}:
        return "sky"
    if kinds and kinds <= _INDOORS:
        return "room"
    return "city" if kinds & {"vehicle", "building"} and not kinds & {"animal", "plant"} else "meadow"


_SETTINGS: Final = {
    **dict.fromkeys(
        ("penguin", "polar bear", "snowman", "plain snowman", "igloo", "sled", "skier", "snowboarder"), "snow"
    ),
    **dict.fromkeys(("camel", "bactrian camel", "cactus"), "desert"),
    **dict.fromkeys(("rocket", "flying saucer", "satellite", "planet", "astronaut", "alien"), "space"),
    **dict.fromkeys(("lighthouse", "seagull"), "sea"),
    **dict.fromkeys(("scarecrow", "wheelbarrow", "swing", "sandcastle", "birdhouse", "bench"), "meadow"),
    **dict.fromkeys(("fence", "gate", "doghouse", "water well", "windmill", "barn", "tent", "tractor"), "meadow"),
    **dict.fromkeys(("street lamp", "statue", "traffic cone"), "city"),
}
"""Where a thing is mostly seen, if that is elsewhere than others of its kind are."""

_INDOORS: Final = {"food", "drink", "tool", "furniture", "thing", "clothing", "instrument"}


_IMAGINED_SCENES: Final = 6


def _naturalness(scene: Scene) -> float:
    """How much a scene is like the world: all relations kept, and things where such things are at home."""
    groups = enumerate(scene.members)
    return len(scene.wish.relations) - sum(strangeness(scene.wish, index, items) for index, items in groups)


def _room(scene: Scene) -> float:
    """How easily things in a scene can be told apart: all relations kept, groups in rows, and no small things."""
    in_rows = sum(arrangement in ("", "in a row", "in two rows") for arrangement in scene.arrangements)
    return 3 * len(scene.wish.relations) + in_rows + min(item.size for item in scene.items) + _naturalness(scene)


# --- looking at images ----------------------------------------------------------------------------------------------

_POSITIVE: Final = ("object", "count", "attribute", "size", "place", "relation", "text")
"""The kinds of questions about what the image was made to show."""

_Numbers = dict[Who, int | None]


def _unsure(name: str, reason: str) -> dict[str, Any]:
    return {"id": name, "answer": "unsure", "confidence": 0.0, "reason": reason}


def _verdict(name: str, answer: tuple[float, str] | None) -> dict[str, Any]:
    if answer is None:
        return _unsure(name, "outside what the open models know")
    probability, reason = answer
    yes = probability >= 0.5
    confidence = round(probability if yes else 1 - probability, 3)
    return {"id": name, "answer": "yes" if yes else "no", "confidence": confidence, "reason": reason}


def _numbers(sight: Any, questions: Sequence[Question]) -> _Numbers:
    """How many things of each kind there are, as far as the answers to all of these questions will agree on it.

    None: the likeliest number is one that was asked for, and yet too unlikely for a yes.
    """
    numbers: _Numbers = {}
    for who in {question.who for question in questions if question.who.thing >= 0}:
        counts = {q.count for q in questions if q.kind == "count" and q.who == who and not q.more}
        likeliest = max(sorted(counts), key=lambda n: sight.p_number(who, n), default=None)
        if likeliest is not None and sight.p_number(who, likeliest) >= 0.5:
            numbers[who] = likeliest
        else:
            count = int(sight.counts(who).argmax())
            count = max(1, count) if sight.p_any(who) >= 0.5 else 0
            numbers[who] = None if count in counts else count
    return numbers


def judge_all(sight: Any, questions: Sequence[Question]) -> list[tuple[float, str]]:
    """The probability of yes to each of some questions about one image, and what was seen."""
    sight = sight.expecting(expected_of(questions))
    numbers = _numbers(sight, questions)
    return [_judge(sight, question, numbers) for question in questions]


def expected_of(questions: Sequence[Question]) -> dict[int, set[int]]:
    """The things that an image was made to show, each with the looks that are asked of it; 0 is no look."""
    looks: dict[int, set[int]] = {}
    for question in questions:
        if question.kind in _POSITIVE:
            for who in (question.who, *question.partners):
                looks.setdefault(who.thing, set()).update([who.look] if who.look >= 0 else [])
        if question.kind == "attribute":
            looks[question.who.thing].add(question.look)
    return {thing: own or {0} for thing, own in looks.items()}


def _judge(sight: Any, question: Question, numbers: _Numbers) -> tuple[float, str]:
    """The probability of yes, and a short description of what was seen."""
    who, number = question.who, numbers.get(question.who)
    things = f"{_seen(number, who)} seen" if who.thing >= 0 else ""
    match question.kind:
        case "object":
            return sight.p_any(who), things
        case "count" if question.more:
            return sight.p_count(who, question.count, more=True), things
        case "count":
            p = sight.p_number(who, question.count)
            if number is not None and number != question.count:  # there is only one number
                p = min(p, 1 - sight.p_number(who, number))
            return p, things if number is not None else f"{things}, but it is unclear how many"
        case "attribute":
            looks = sorted({LOOK_NAMES[item.look] or "plain" for item in sight.items(who)})
            return sight.p_look(who, question.look), things + (f", {' and '.join(looks)}" if looks else "")
        case "size":
            return sight.p_size(who, question.name), things
        case "place":
            places = dict.fromkeys(place_phrase(place_of([item])) for item in sight.items(who))
            return sight.p_place(who, question.name), things + (f", {' and '.join(places)}" if places else "")
        case "relation":
            p = sight.p_relation(question)
            return p, _related(question, numbers, is_so=p >= 0.5)
        case "background":
            likeliest = max(BACKGROUND_PHRASES, key=sight.p_background)
            return sight.p_background(question.name), f"set {BACKGROUND_PHRASES[likeliest]}"
        case "absent":
            return 1 - sight.p_any(who), things
        case "text":
            text = sight.text[0]
            return sight.p_text(who, question.name), f'it says "{text}"' if text else "no text seen"


def _related(question: Question, numbers: _Numbers, *, is_so: bool) -> str:
    """What was seen of the things that a question relates."""
    things = f"{_seen(numbers.get(question.who), question.who)} seen"
    partners = " and ".join(_seen(numbers.get(who), who) for who in question.partners)
    if any(numbers.get(who) == 0 for who in (question.who, *question.partners)):
        return f"{things}, and {partners}"
    return f"{things}, {'' if is_so else 'not '}{question.name} {partners}"


def _seen(n: int | None, who: Who) -> str:
    if n is None:
        return noun_of(who.thing, 2)
    return f"{NUMBERS[n - 1] if 1 <= n <= len(NUMBERS) else n or 'no'} {noun_of(who.thing, n)}"
