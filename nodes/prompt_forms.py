"""The prompt in an answer of a chat model: in a form, inside of another object, or in words with a label or a fence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator

from gems.models.lenient import Form, Text, field_name

__all__ = ["DraftForm", "Prompt", "bare_prompt", "labelled_text", "prompt_in", "speaks"]

_NAMES: Final = (
    "final_prompt", "new_prompt", "next_prompt", "image_prompt", "generation_prompt", "image_generation_prompt",
    "refined_prompt", "revised_prompt", "improved_prompt", "rewritten_prompt", "updated_prompt", "enhanced_prompt",
    "optimized_prompt", "positive_prompt", "prompt_text", "prompts", "draft",
    "new_draft", "next_draft", "next_try", "next_attempt"
)  # fmt: skip
"""Other names that models give to a prompt."""

_WORD: Final = (
    r"(?:the|my|your|a|an|this|below|new|next|final|improved|refined|revised|rewritten|updated|enhanced|optimi[sz]ed"
    r"|better|image|generation|generator|text-to-image|positive|suggested|proposed|complete|full|detailed|english|is)"
)
_SAYS_PROMPT: Final = (
    rf"(?:{_WORD}[ _-])*(?:prompt|提示词|提示詞|プロンプト|프롬프트)"
    r"(?:[ _-](?:text|for (?:the|your|an?) [\w -]{1,40}|in english|is|could be|would be|as follows))?"
    r"(?: ?\([^()\n]{1,40}\))?"
)
_PREFACE: Final = r"here(?: is|['’]s|[ ]are)[ ]"
_LABEL: Final = re.compile(
    rf"(?:^[ \t>#*_`-]*+(?:\d{{1,2}}[.)][ ][*_`]*+)?(?:{_PREFACE})?|(?<=[.!,])[ ]{_PREFACE})"
    rf"{_SAYS_PROMPT}[*_` ]*[:：=][*_`]*"
    rf"|^[ \t]*(?:\#+[ ]*|\*\*|__){_SAYS_PROMPT}[*_]*[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""Matches what says that the words after it are the prompt."""
_FENCE: Final = re.compile(
    r"```[^\S\n]*(?:text|txt|prompt|plain(?:text)?|markdown|md)?[^\S\n]*\n(?!\s*\w+\()(?P<text>.*?)\n?[^\S\n]*```",
    re.DOTALL,
)
_ELEMENT: Final = re.compile(rf"<(?P<name>{_SAYS_PROMPT})>(?P<text>[^<>]+)</(?P=name)>", re.IGNORECASE)
_OTHER_LABEL: Final = re.compile(
    r"\n[ \t>#*_`-]*+(?:\d{1,2}[.)] [*_`]*+)?(?:negative[ _]prompt|parts|experience|strategy"
    r"|explanation|reason(?:ing)?|rationale|notes?|why|changes|lessons?)\b[^\n:：]{0,40}[:：]|\n[^\S\n]*\n",
    re.IGNORECASE,
)
"""Matches where the prompt after a label ends."""
_QUOTES: Final = ('""', "“”", "``", "''", "「」", "«»")

_SPEECH: Final = re.compile(
    r"[\s*_#>]*(?:i(?:['’](?:m|ll|d|ve)\b|\s+(?:am|can|cannot|will|won['’]t|do|have|would|need|could|apologi[sz]e)\b)"
    r"|sorry\b[,.!]|we (?:can|are)|as an? (?:ai|language)\b|unfortunately\b|my apologies"
    r"|(?:sure|certainly|of course|okay|ok|absolutely|great|hello|hi)\b\s*[!,.:—-]"
    r"|抱歉|对不起|很抱歉|我(?:无法|不能)|lo siento|es tut mir leid|désolé|je (?:ne|suis)\b|ich (?:kann|darf)\b)",
    re.IGNORECASE,
)
"""Matches how words to the user begin."""

_OF_NEXT: Final = re.compile(r"next|new|final|improved|refined|revised|rewritten|updated|better|output|result|answer")
_OF_OTHERS: Final = re.compile(
    r"history|previous|prior|last|latest|best|old|current|original|user|wish|attempt|fail|example|before|negative"
    r"|wrong|bad|^parts?$|^pieces?$"
)
"""Names of objects whose prompt is another one than the next, or a piece of it."""
_DEPTH: Final = 3


def prompt_in(text: str) -> str:
    """The prompt in an answer in words; empty if nothing says which words it is."""
    text = _ELEMENT.sub(r"\nPrompt:\n```\n\g<text>\n```\n", text)
    for label in reversed(list(_LABEL.finditer(text))):  # a model that thinks aloud writes its drafts first
        after = text[label.end() :].lstrip()
        if fence := _FENCE.match(after):
            return fence["text"].strip()
        end = _OTHER_LABEL.search(after)
        if words := _without_quotes(after[: end.start()] if end else after):
            return words
    fences = _FENCE.findall(text)
    return fences[0].strip() if len(fences) == 1 else ""


def bare_prompt(text: str) -> str:
    """A text in the place of a prompt, without a label before it and a fence around it."""
    text = text.strip()
    if fence := _FENCE.fullmatch(text):
        text = fence["text"].strip()
    if label := _LABEL.match(text):
        rest = text[label.end() :].strip()
        fence = _FENCE.fullmatch(rest)
        return fence["text"].strip() if fence else _without_quotes(rest) or text
    return text


def speaks(text: str) -> bool:
    """Whether a text is words to the user, such as a refusal or a question, rather than a prompt."""
    return bool(_SPEECH.match(text)) or text.rstrip().endswith(("?", "？"))


def labelled_text(text: str, names: Sequence[str]) -> str | None:
    """What a line says after one of these names as its label; None if there is no such line."""
    words = "|".join(re.escape(name).replace("_", "[ _]") for name in names)
    line = re.search(
        rf"^[ \t>#*_`-]*+(?:{words})[*_` ]*[:：][*_` ]*(?P<text>\S[^\n]*)", text, re.IGNORECASE | re.MULTILINE
    )
    return line["text"].strip().strip("*_`") if line else None


def _without_quotes(text: str) -> str:
    text = text.strip("> \t\n").removesuffix("**").strip()
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if text[:1] == opening and text[-1:] == closing and len(text) > 2 and not {opening, closing} & set(inner):
            return inner.strip()
    return text


def _read_prompt(raw: Any) -> Any:
    if isinstance(raw, Mapping):
        raw = next((value for key, value in raw.items() if field_name(key) in ("prompt", *_NAMES) and value), raw)
    if isinstance(raw, str):
        raw = bare_prompt(raw)
        if _SPEECH.match(raw):
            raise ValueError("it is words to the user, and no prompt")
    return raw


Prompt = Annotated[Text, BeforeValidator(_read_prompt)]
"""A prompt for an image model."""


class DraftForm(Form):
    """A form with a ``prompt``, which may stand in an object inside of it."""

    other_names: ClassVar[Mapping[str, Sequence[str]]] = {"prompt": _NAMES}

    @classmethod
    def enters(cls, name: str) -> bool:
        """See ``Form.enters``. The prompt of an earlier try is not the prompt."""
        return bool(_OF_NEXT.search(name)) or not _OF_OTHERS.search(name)

    @classmethod
    def from_prose(cls, text: str) -> Any:
        """See ``Form.from_prose``."""
        return {"prompt": prompt} if (prompt := prompt_in(text)) else None

    @classmethod
    def by_field(cls, raw: Mapping[Any, Any]) -> dict[str, Any]:
        """See ``Form.by_field``; the prompt may stand in an object inside."""
        fields = super().by_field(raw)
        if fields["prompt"] and not isinstance(fields["prompt"], (Mapping, list)):
            return fields
        by_prompt = {str(inner["prompt"]): (is_next, inner) for is_next, inner in cls._inner_forms(raw)}
        forms = [inner for is_next, inner in by_prompt.values() if is_next or len(by_prompt) == 1]
        if len(forms) != 1:
            return fields
        is_missing = {name: name == "prompt" or value is None for name, value in fields.items()}
        return {name: forms[0][name] if is_missing[name] else value for name, value in fields.items()}

    @classmethod
    def _inner_forms(
        cls, raw: Any, depth: int = _DEPTH, *, is_next: bool = False
    ) -> Iterator[tuple[bool, dict[str, Any]]]:
        """The fields of the objects with a prompt, and whether their name says that it is the next one."""
        if isinstance(raw, list) and len(raw) == 1:
            raw = {"": raw[0]}
        for key, value in raw.items() if depth and isinstance(raw, Mapping) else ():
            name = field_name(key)
            if not is_next and not cls.enters(name):
                continue
            says_next = is_next or bool(_OF_NEXT.search(name))
            inner = super().by_field(value) if isinstance(value, Mapping) else {}
            if isinstance(inner.get("prompt"), str) and inner["prompt"]:
                yield says_next, inner
            elif isinstance(value, (Mapping, list)):
                yield from cls._inner_forms(value, depth - 1, is_next=says_next)
