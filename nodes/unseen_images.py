"""Recognizes that a chat model has not seen an image: some servers leave images out of a question without a word.

Such a model may say so, and fill in the form all the same: as an example, or for the image that it imagines.
"""

from __future__ import annotations

import re
from typing import Final

from gems.models.lenient import read_answer
from gems.models.yes_or_no import plain_words
from gems.nodes.remarks import Remark

__all__ = ["says_unseen", "tells_unseen"]

_IMAGE: Final = (
    r"(?:images?|pictures?|photos?|photographs?|attachments?)\b"
    r"(?!'s? | (?:arte?i?facts?|defects?|flaws?|noise|issues?|problems?|errors?|metadata|quality)\b)"
)
_WHICH: Final = r"(?:(?:the|an?|any|this|that|these|those|your|actual|provided|attached|uploaded|given|shared)\s+){0,3}"
_LOOK: Final = (
    r"(?:\w+ly\s+)?(?:see|view|access|open|load|display|analy[sz]e|inspect|process|interpret|examine|perceive|look at"
    r"|receive|get|have|have access to)(?:\s+(?:or|and)\s+\w+)?"
)
_ARRIVED: Final = (
    r"(?:provided|attached|given|supplied|uploaded|received|included|shared|available|presented|sent|loaded|found"
    r"|accessible|visible to me|come through)"
)
_NOT_SEEN: Final = re.compile(
    rf"\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to|(?:do|did)(?: not|n't)"
    rf"|(?:ability|capability|capacity) to|not (?:currently )?equipped to)\s+{_LOOK}\s+{_WHICH}{_IMAGE}"
    rf"|\b(?:have(?: not|n't)|never) (?:seen|received|been (?:given|shown|sent)) {_WHICH}{_IMAGE}"
    rf"|\b(?:have no|no|without|lack) (?:(?:access to|seeing|viewing|a view of|sight of) ){_WHICH}{_IMAGE}"
    rf"|\bno\s+(?:actual |real |visible |input )?{_IMAGE}(?:\s+(?:data|file|input))?"
    rf"\s+(?:to (?:see|view|look at|inspect|analy[sz]e)\b"
    rf"|(?:(?:was|were|is|are|has been|have been)\s)?(?:actually )?{_ARRIVED})"
    rf"|\Ano {_IMAGE}\W*\Z"
    rf"|\b{_IMAGE}\s+(?:(?:was|were|is|are|has|have|did)(?: not|n't))\s+(?:been |actually ){{0,2}}{_ARRIVED}"
    rf"|\b{_IMAGE} (?:is|was|are|were) (?:missing\b(?! \w)|unavailable|inaccessible)"
    rf"|(?:\A|[.:;!]\s+)(?:the |input )?{_IMAGE} (?:not (?:visible|seen|{_ARRIVED})|(?:is|was) not visible)\b"
    rf"|\b{_IMAGE} (?:(?:could not|couldn't|cannot|can't|can not) be (?:loaded|opened|read|decoded|fetched|downloaded"
    rf"|accessed|processed)|(?:failed|fails) to (?:load|open|decode|download))\b"
    rf"|\bfail(?:ed|s|ure)? (?:to (?:load|open|read|decode|fetch|download)|loading) {_WHICH}{_IMAGE}"
    r"|\btext.(?:only|based) (?:\w+ )?(?:ai|model|assistant|language)"
    rf"|\bassum(?:e|es|ed|ing)(?: that)? {_WHICH}{_IMAGE} (?:shows?|match\w*|depicts?|contains?|has|does|is|was|would)"
    r"|\bhypothetical(?:ly)?\b(?! scene)"
    r"|(?:无法|不能|看不到|没有|没|未)(?:直接|能够|能|被)?(?:看到|看见|查看|访问|读取|分析|识别|收到|提供|上传|附上|获取)?"
    r"(?:到|任何|您|你|的|该|这张|这个|此|实际|提供|上传)*(?:图片|图像|照片)"
    r"|(?:图片|图像|照片)(?:没有|未|并未)(?:被)?(?:提供|上传|附上|显示)"
    r"|\bkein(?:e|en)? bild\w* (?:\w+ )?(?:erhalten|bereitgestellt|angehängt|vorhanden"
    r"|übermittelt|sehen|ansehen|betrachten|analysieren|anzeigen)"
    r"|\bbild(?:er)? (?:\w+ )?nicht (?:sehen|öffnen|ansehen|anzeigen|analysieren)"
    r"|\b(?:ne peux pas|impossible de|incapable de) (?:voir|accéder à|visualiser|analyser)"
    r" (?:l'|cette |une |d'|les )?images?"
    r"|\bno (?:puedo|es posible|tengo la capacidad de) (?:ver|visualizar|acceder a|analizar)(?: o \w+)?"
    r" (?:(?:la|una|las|ninguna|tu|su) )?im[aá]gen"
    r"|\bpas (?:en mesure|capable) de (?:voir|visualiser|analyser)(?: ou d'?e? ?\w+)?"
    r" (?:l'|cette |une |d'|les |des )?images?"
    r"|\bnão (?:consigo|posso|sou capaz de) (?:ver|visualizar|analisar|acessar)(?: \w+mente)?"
    r" (?:(?:a|as|uma) )?image[mn]"
    r"|\bnon (?:posso|riesco a|sono in grado di) (?:vedere|visualizzare|analizzare) (?:l'|(?:le|delle|un')\s?)?immagin"
    r"|\bkan (?:de |het )?(?:geen )?(?:afbeelding(?:en)?|foto(?:'s)?)(?: \w+)? (?:niet )?(?:zien|bekijken|openen)"
    r"|\bне (?:могу|способен|способна)(?: \w+){0,2} (?:изображени|картинк|фотографи)"
    r"|(?:画像|写真)を?(?:直接)?(?:は|が)?(?:見る|閲覧|表示|分析|確認|認識)(?:する)?(?:ことが|ことは)?(?:でき(?:ません|ない)|見えません)"
    r"|(?:画像|写真)(?:が|は)(?:見えません|見えない|添付されていません|ありません)"
    r"|(?:이미지|사진)[를을가이]? ?(?:직접 )?(?:볼|확인할|분석할|열|인식할) ?수(?:가)? ?없",
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
