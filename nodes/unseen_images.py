"""Recognizes that a chat model has not seen an image: some servers leave images out of a question without a word.

Such a model may say so, and fill in the form all the same: as an example, or for the image that it imagines.
"""

from __future__ import annotations

import re
from typing import Final

from gems.models.lenient import read_answer
from gems.models.yes_or_no import plain_words
from gems.nodes.remarks import Remark
from gems.nodes.unseen_words import IN_OTHER_LANGUAGES

__all__ = ["says_unseen", "tells_unseen"]

_IMAGE: Final = (
    r"(?:images?|pictures?|photos?|photographs?|attachments?)\b(?!'s? | (?:arte?i?facts?|defects?|flaws?|noise|issues?"
    r"|problems?|errors?|metadata|quality|prompts?|sizes?)\b)"
)
_TALK: Final = (
    r"(?:(?:the|this|our|your|my|current|last|first) ){0,2}(?:conversation|chat|message|prompt|request|context|input"
    r"|thread|question|query|upload|turn|end|side)\b"
)
_PLACED: Final = (
    r" (?:of|on|in|inside|at|behind|above|over|under|within|between|beside|next|hanging|hung|printed|painted|shown"
    rf"|displayed)\b(?! {_TALK})"
)
"""What follows an image that is part of what the image shows: "I see no image on the sign"."""
_END: Final = (
    r"(?=\W*\Z|\s*[.,;:!?()\[\]–—]|\s-|\s(?:here|at all|so|but|and i|though|yet|for me|from you|because|since)\b"
    rf"|\s(?:in|on|with|to|from) {_TALK})"
)
_WHICH: Final = r"(?:(?:the|an?|any|this|that|these|those|your|actual|provided|attached|uploaded|given|shared)\s+){0,3}"
_AN_IMAGE: Final = (
    rf"(?:(?=(?:the|this|that|these|those|your)\b){_WHICH}{_IMAGE}|{_WHICH}(?:visual input|{_IMAGE}(?!{_PLACED})))"
)
_LOOK: Final = (
    r"(?:\w+ly\s+)?(?:see|view|access|open|load|display|analy[sz]e|inspect|process|interpret|examine|perceive|look at"
    r"|receive|get|have|have access to|find|detect)(?:\s+(?:or|and)\s+\w+)?"
)
_ARRIVED: Final = (
    r"(?:provided|attached|given|supplied|uploaded|received|included|shared|available|presented|sent|loaded|found"
    r"|accessible|visible to me|come through)"
)
_SEND: Final = r"(?:upload|attach|share|send|resend|provide|include|supply|paste)"
_CONTENT: Final = r"(?:\s+(?:data|file|input|content|itself)s?)?"
_NOT_SEEN: Final = re.compile(
    rf"\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to|(?:do|did)(?: not|n't)"
    rf"|(?:ability|capability|capacity) to|no way to|not (?:currently )?equipped to)\s+{_LOOK}\s+{_AN_IMAGE}"
    rf"|\b(?:have(?: not|n't)|never) (?:seen|received|been (?:given|shown|sent|provided(?: with)?)) {_AN_IMAGE}"
    rf"|\bthere (?:does(?: not|n't) (?:seem|appear) to be|is(?: not|n't)) (?:an|any) (?:attached )?{_IMAGE}"
    rf"(?: attached| here|{_END})"
    rf"|\bnot (?:seeing|receiving|getting) {_AN_IMAGE}"
    rf"|\b(?:was|were)(?: not|n't) (?:given|sent|shown|provided(?: with)?) {_AN_IMAGE}"
    rf"|\byou (?:(?:did|have)(?: not|n't)|(?:may have )?forg[eo]t(?:ten)? to|never) (?:yet |actually )?"
    rf"(?:{_SEND}(?:e?d)?|sent) {_AN_IMAGE}"
    rf"|\b(?:have no|no|without|lack) (?:(?:access to|seeing|viewing|a view of|sight of|way of seeing) )"
    rf"(?:images\b|{_AN_IMAGE})"
    rf"|\bwithout (?:the|your) (?:actual )?{_IMAGE}{_CONTENT}{_END}"
    rf"|\b(?:there(?:'s| (?:is|was|are|were|seems to be|appears to be))|i(?: can)? (?:see|find|detect)|i(?:'ve| have)?"
    rf" (?:got|received|have)|i have|{_TALK} (?:has|contains|includes|comes with)) no (?:actual |visible |attached )?"
    rf"(?:(?:images?|attachments?)\b{_CONTENT}{_END}|{_IMAGE}{_CONTENT} (?:here\b|(?:in|on|with|to|from) {_TALK}))"
    rf"|\bno\s+(?:actual |real |visible |input )?(?:(?:visual|pixel) (?:input|data|content)s?|{_IMAGE}{_CONTENT})"
    rf"\s+(?:to (?:see|view|look at|inspect|analy[sz]e)\b|(?:came|got|comes|went) through\b|(?:arrived|reached me)\b"
    rf"|(?:(?:was|were|is|are|has been|have been)\s)?(?:actually )?(?:{_ARRIVED}\b(?!{_PLACED})|present{_END}))"
    rf"|\Ano (?:visual input|{_IMAGE}{_CONTENT})(?: in {_TALK})?\W*\Z"
    rf"|\b{_IMAGE}{_CONTENT}\s+(?:(?:was|were|is|are|has|have|did|does|do)(?: not|n't))\s+"
    rf"(?:been |actually |successfully ){{0,2}}(?:{_ARRIVED}|(?:get|go|make it) through|upload|arrive|load|attach)\b"
    rf"|\b{_IMAGE}{_CONTENT} (?:is|was|are|were|(?:seems?|appears?) to be)"
    rf" (?:missing\b(?! \w)|unavailable|inaccessible)"
    rf"|(?:\A|[.:;!]\s+)(?:the |input )?{_IMAGE}{_CONTENT} (?:not (?:visible|seen|{_ARRIVED})|(?:is|was) not visible)\b"
    rf"|\b{_IMAGE} (?:(?:could not|couldn't|cannot|can't|can not) be (?:loaded|opened|read|decoded|fetched|downloaded"
    rf"|accessed|processed)|(?:failed|fails) to (?:load|open|decode|download|upload|attach))\b"
    rf"|\b{_IMAGE}{_CONTENT} (?:(?:(?:was|were|is|are|has been|have been) )?(?:"
    rf"(?:omitted|removed|dropped|stripped) from {_TALK}|unsupported\b|not supported\b)|omitted\W*\Z)"
    rf"|\bnot support (?:images?\b|vision\b|visual input|multimodal)|\b(?:image|vision) input is not supported"
    rf"|\bfail(?:ed|s|ure)? (?:to (?:load|open|read|decode|fetch|download)|loading) {_WHICH}{_IMAGE}"
    r"|\b(?:(?:do|does)(?: not|n't) (?:have|possess)|have no|has no|lack|without|no) (?:the |any )?"
    r"(?:vision|visual|image|multimodal)(?:[- ](?:viewing|processing|analysis|recognition|understanding|input))?"
    r" (?:capabilit|abilit|access\b|perception\b)"
    r"|\b(?:can only|only able to|i only) (?:process|handle|work with|understand|interpret|respond to|accept|analy[sz]e"
    rf"|read) (?:plain )?text(?:ual)?(?:-based)?(?: inputs?| messages?| data)?{_END}"
    r"|\b(?:(?:i'm|i am|am) limited to (?:processing )?text"
    r"|i (?:have )?only (?:got|received) text|only text was provided)\b"
    r"|\b(?:i'm|i am|am|as|being) (?:just |only |purely )?an? (?:pure(?:ly)? )?text(?: language)?"
    r" (?:ai|model|assistant)\b"
    r"|\b(?:i'm|i am) (?:purely )?text-only\b"
    rf"|\b(?:please|kindly|(?:could|can|would) you(?: please)?|once you|need you to) (?:re-?)?{_SEND} (?:me )?"
    rf"(?:the|your|an?|that|this) (?:actual )?{_IMAGE}(?! (?:with|that|at|from|in|showing|without)\b(?! {_TALK}))"
    r"|\btext.(?:only|based) (?:\w+ )?(?:ai|model|assistant|language|llm|chatbot)"
    rf"|\bassum(?:e|es|ed|ing)(?: that)? {_WHICH}{_IMAGE} (?:shows?|match\w*|depicts?|contains?|has|does|is|was|would)"
    rf"|\bhypothetical(?:ly)?\b(?! scene)|{IN_OTHER_LANGUAGES}",
    re.IGNORECASE,
)
"""How models say that they see no image, or that they imagine one."""


def says_unseen(text: str) -> bool:
    """Whether a text says that its author has not seen the image that it is about."""
    return bool(_NOT_SEEN.search(" ".join(plain_words(text).split())))


def tells_unseen(remark: Remark) -> bool:
    """Whether a remark says that no image was seen, in words or by a field such as "has_image"."""
    is_said = isinstance(remark.value, str) and says_unseen(remark.value)
    return is_said or _denies_image(remark.name, remark.value)


_IMAGE_WORDS: Final = frozenset({"image", "images", "img", "picture", "photo", "attachment"})
_SEEN_WORDS: Final = frozenset(
    {
        *(
            "accessible",
            "accessed",
            "attached",
            "available",
            "decoded",
            "found",
            "given",
            "got",
            "has",
            "have",
            "included",
        ),
        *("loaded", "opened", "present", "processed", "provided", "readable", "received", "saw", "see", "seen", "sees"),
        *("sent", "shared", "shown", "supplied", "uploaded", "view", "viewable", "viewed", "visible"),
        *("access", "count", "num", "number", "status"),
    }
)
_NEGATIONS: Final = frozenset(
    {
        "no",
        "not",
        "cannot",
        "missing",
        "unavailable",
        "inaccessible",
        "absent",
        "unseen",
        "invisible",
        "lacks",
        "without",
    }
)
_FILLERS: Final = frozenset(
    {
        "is",
        "was",
        "were",
        "are",
        "the",
        "an",
        "a",
        "any",
        "input",
        "can",
        "could",
        "i",
        "to",
        "able",
        "been",
        "of",
        "did",
    }
)
_NOTHING: Final = re.compile(
    r"\W*(?:(?:is |was )?(?:not|never) (?:\w+ )?(?:provided|visible|seen|available|accessible|received|attached|loaded"
    r"|given|shown|found|present|supplied|uploaded|readable)|none|missing|unavailable|inaccessible|n/?a|absent)\W*"
)


def _denies_image(name: str, value: object) -> bool:
    words = name.rstrip("?").split("_")
    is_about_image = any(w in _IMAGE_WORDS for w in words) or ("can" in words and "see" in words)
    if not is_about_image or not all(w in _IMAGE_WORDS | _SEEN_WORDS | _NEGATIONS | _FILLERS for w in words):
        return False
    is_negated = any(word in _NEGATIONS for word in words)
    if isinstance(value, str) and _NOTHING.fullmatch(plain_words(value)):
        return not is_negated
    if isinstance(value, (list, dict)) or not (is_negated or any(word in _SEEN_WORDS for word in words)):
        return False
    try:
        return read_answer(value) == ("yes" if is_negated else "no")
    except ValueError:
        return False
