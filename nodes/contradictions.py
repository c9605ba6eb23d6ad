"""Finds what contradicts a yes: its own reason, what else its answer says, and the words around the answers.

What it finds makes a yes unsure, so that it is asked again. It is never a no: models write oddly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gems.graph.state import Requirement
from gems.languages import LANGUAGES, Words
from gems.models.lenient import field_name, read_answer
from gems.models.yes_or_no import is_one_word, plain_words
from gems.nodes.mapping_checks import says_absent
from gems.nodes.remarks import Remark
from gems.reading import Reading, read

__all__ = ["contradicted", "denies", "flaws_deny", "names_failures", "says_no_beside"]

_NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_NUMBER: Final = rf"(?:{'|'.join(_NUMBERS)}|\d{{1,3}})"
_PLACE: Final = r"(?:in|on|at|to|inside|near|next|behind|above|below|under|visible|present|shown|there|here)"
_COUNT_QUESTION: Final = re.compile(
    r"(?:\b(?:are|is|does|do|can|has|have)\b[^?]*?\bexactly "
    r"|(?:(?:are|is) there|(?:does|do) (?:the )?(?:image|picture|photo|scene) (?:show|contain|have|depict)) (?:only )?)"
    rf"(?P<number>{_NUMBER}) (?P<thing>[\w' -]+?)(?: {_PLACE}\b[^?]*)?\?"
)
_ANY_QUESTION: Final = re.compile(
    rf"(?:are|is) there (?:any|some|an?|at least one) (?P<thing>[\w' -]+?)(?: {_PLACE}\b[^?]*)?\?"
)
_NO_AT_FIRST: Final = re.compile(
    r"\W*(?:no|nein|nee|nej|nei|non|não|нет|否|いいえ|아니요|아니오)"
    r"(?:\s*\Z|(?:\s*[,，.。:：;；!！–—]|\s+-)(?!\s*(?:of\b|\d)))(?P<rest>.*)",
    re.DOTALL,
)
"""Matches a reason that begins with a no, and not with "No. of cars: 2"."""
_OPPOSITE: Final = re.compile(
    r"\W*(?:不是|不对|不符合|不正确|(?:(?:this|that|it|the (?:requirement|condition|criterion)) (?:is|was|has) )?"
    r"(?:(?:false|incorrect|untrue|wrong|fail(?:s|ed)?|not (?:true|correct))(?= because| since|\s*[,.:;!–—]|\Z)"
    r"|not really(?=\s*[,.:;!–—]|\Z)|not (?:met|satisfied|fulfilled)\b|unmet\b|violated\b))"
    r"|.*\b(?:answer|verdict|this|it) (?:is|should be|must be) [\"'*]*no\b(?! \w)|\W*should be [\"'*]*no\b(?! \w)"
    r"|.*\b(?:so|therefore|thus|hence)[,:]? [\"'*]*no\W*\Z",
    re.DOTALL,
)
"""Matches a reason that says the opposite of a yes, whatever was asked."""
_ADDS_UP: Final = re.compile(
    r"[,;+&]|\b(?:and|another|other|second|plus|more|each|every|per|with|also|beside|of|least|next|then|than|them)\b"
    r"|\bflank\w*"
)
"""Matches what may add to a number, so that it is not the whole count."""


def denies(question: str, reason: str) -> bool:
    """Whether the reason of a yes says the opposite: in words, or by another count than was asked for."""
    words = " ".join(plain_words(reason).split())
    asked_question = " ".join(plain_words(question).split())
    if _is_opposite(read(question), words):
        return True
    if _none_in_other_languages(question, words) or _other_count_in_other_languages(asked_question, reason):
        return True
    if match := _COUNT_QUESTION.search(asked_question):
        return _is_none(match["thing"], words) or _is_other_count(_value(match["number"]), match["thing"], words)
    if match := _ANY_QUESTION.match(asked_question):
        return _is_none(match["thing"], words)
    return False


def _is_opposite(asks: Reading, words: str) -> bool:
    quotations = [" ".join(plain_words(quotation).split()) for quotation in asks.quotations]
    if any(re.match(rf"\W*{re.escape(q)}(?!\w)(?!.*\b(?:not|but|says|reads|instead)\b)", words) for q in quotations):
        return False  # "FALSE, in red letters" is what the sign says
    if _OPPOSITE.match(words):
        return True
    match = _NO_AT_FIRST.match(words)
    return match is not None and not (asks.is_negated and (not match["rest"] or _begins_absent(match["rest"])))


def _begins_absent(words: str) -> bool:
    """Whether a text soon says that something is absent: "no, there are no people" is no contradiction."""
    beginning = read(" ".join(words.split()[:4]))
    return says_absent(beginning) or beginning.is_negated


_NO_THING: Final = re.compile(
    r"\W*(?:es (?:sind|ist|gibt) |il n'y a |no hay |non ci sono |ich sehe )?"
    r"(?:keine?n?|aucune?|pas (?:de |d')|ning[uú]na?|nessun[oa]?|nenhuma?|geen|нет)\s*"
    r"(?!(?:weitere|andere|autre|otr|altr|outr|andere|других)\w*)\w+"
    r"(?: (?:zu sehen|sichtbar|vorhanden|erkennbar|im bild|visibles?"
    r"|dans l'image|en la imagen|nell'immagine|zichtbaar))*\W*"
    r"|\W*(?:(?:图|图片|图像|画面|照片)(?:中|里|上))?(?:没有|并没有|看不到|未见)(?!其他|其它|别的|多余|更多|问题)\w{1,3}\W*"
)
"""Matches a reason in another language that says that a thing is not there, and no more."""


def _none_in_other_languages(question: str, words: str) -> bool:
    asked_question = " ".join(plain_words(question).split())
    asks_for_things = _COUNT_QUESTION.search(asked_question) or _ANY_QUESTION.match(asked_question)
    return bool(asks_for_things and not read(question).is_negated and _NO_THING.fullmatch(words))


_FIRST_WORDS: Final = 5
_JOINS: Final = re.compile(r"[,;+&，、；]|\b(?:und|sowie|plus|et|y|e|en|и|dazu|noch)\b|[和与及另]|還|还")


_ONLY: Final = Words(
    "nur bloß lediglich seul seule seulement uniquement solo solamente unicamente soltanto so apenas somente alleen "
    "slechts maar tylko sadece yalnızca только лишь всего فقط केवल सिर्फ 只 仅 僅"
)
"""Words that make "one" a count; else it may be an article."""
_BY_NUMBERS: Final = ("de", "es", "it", "pt", "nl", "pl", "tr", "fr")


def _other_count_in_other_languages(asked_question: str, reason: str) -> bool:
    """Whether a reason that is not in English begins with another number of things than was asked for."""
    match, reading = _COUNT_QUESTION.search(asked_question), _counting(reason)
    if match is None or reading.language.name == "en" or len(reading.numbers) != 1:
        return False
    number, asked_number = reading.numbers[0], _value(match["number"])
    around = reading.words[max(0, number.position - 2) : number.position + 2]
    is_article = number.value == 1 and not any(word in _ONLY for word in around)
    if number.is_measure or is_article or number.value == asked_number or number.position >= _FIRST_WORDS:
        return False
    return number.value > asked_number or not _JOINS.search(reading.text)


def _counting(reason: str) -> Reading:
    """The reading of a reason in its language. A few words may be too few to tell: "tres coches" has only a number."""
    reading = read(reason)
    language = LANGUAGES["en"]
    is_certain = any(word in language.function and word != "s" for word in reading.words) or "très" in reason.casefold()
    if reading.numbers or is_certain or not reading.language.spaced:
        return reading
    in_other_languages = (read(reason, LANGUAGES[name]) for name in _BY_NUMBERS)
    return next((other for other in in_other_languages if other.numbers), reading)


_BEGINS: Final = (
    r"\W*(?:i (?:see|count|find) |(?:there|the (?:image|picture)|it|this|image) "
    r"(?:is|are|was|were|has|have|shows?|contains?) )?"
)
_SHOWS_NO: Final = (
    r"\W*(?:(?:the|this) )?(?:image|picture|it|this) (?:does not|doesn't) (?:show|contain|have|depict)(?: any| an?)?"
)
_ENDS: Final = (
    r"(?:\W*\Z|[.;!]|(?: (?:is|are|can be|was|were))? (?:visible|present|seen|shown|there|found|depicted|anywhere"
    r"|(?:with)?in (?:the |this )?(?:image|picture|scene|photo))\b)"
)


_ABSENT: Final = ("no", "zero", "doesn't", "absent", "missing")
_INSTEAD: Final = ("not", "instead", "rather", "doesn't")
"""One of these is in every text that the patterns below match. Each thing needs patterns of its own, and a pattern
takes longer to compile than a run's other checks take together."""


def _is_none(thing: str, words: str) -> bool:
    if not any(word in words for word in _ABSENT):
        return False
    things = _any_number_of(thing)
    absent = rf"(?:{_BEGINS}(?:no|zero|not any|not a single)|{_SHOWS_NO}) {things}{_ENDS}"
    missing = (
        rf"\W*(?:the )?{things} (?:is|are) (?:absent|missing(?! (?!from|in|here|altogether)\w)"
        r"|not (?:there|present|visible|shown|seen))\b"
    )
    return bool(re.match(absent, words) or re.match(missing, words))


def _is_other_count(number: int, thing: str, words: str) -> bool:
    """Whether a text states another number of things. A smaller one may be a part of the sum."""
    if any(word in words for word in _INSTEAD) and _is_denied_count(number, thing, words):
        return True
    numbers = [_value(word) for word in re.findall(rf"(?<![\w.,/]){_NUMBER}(?![\w%/]|[.,]\d)", words)]
    if not numbers or number in numbers or re.search(r"\b(?:pair|couple|both|dozen|single)\b", words):
        return False
    counts = [_value(word) for word in re.findall(_counted(_any_number_of(thing)), words)]
    if not counts:
        return False
    another = rf"\ban? (?:[^\W\d]+ ){{0,3}}(?:one|{_any_number_of(thing)})\b"
    is_sum = _ADDS_UP.search(words) or re.search(another, words)
    return max(counts) > number or (len(numbers) == 1 and not is_sum)


def _is_denied_count(number: int, thing: str, words: str) -> bool:
    spelled = _spelled(number)
    denied = r"not exactly|(?:instead of|rather than|(?:does not|doesn't) (?:show|contain|have|depict))(?: exactly)?"
    not_so_many = rf"\bnot {spelled}(?: but\b|\W*\Z| {_any_number_of(thing)}\b)"
    return bool(re.search(rf"\b(?:{denied}) {spelled}\b|{not_so_many}", words))


def flaws_deny(question: str, flaws: str) -> bool:
    """Whether what is said to be badly made denies a yes: "three cars instead of two"."""
    if not flaws:
        return False
    words, asked_question = (" ".join(plain_words(text).split()) for text in (flaws, question))
    if match := _COUNT_QUESTION.search(asked_question):
        return _is_none(match["thing"], words) or _is_flawed_count(_value(match["number"]), match["thing"], words)
    match = _ANY_QUESTION.match(asked_question)
    return match is not None and _is_none(match["thing"], words)


_ALONE: Final = r"(?! (?!in|on|at|and|to|from|is|are|visible|here|there)\w)"
"""After a thing: it is no part of another word's meaning, as in "car door"."""


def _is_flawed_count(number: int, thing: str, words: str) -> bool:
    things = _any_number_of(thing)
    counts = [_value(word) for word in re.findall(_counted(things), words)]
    if counts and number not in counts:
        return max(counts) > number or bool(re.search(rf"\b(?:instead of|rather than) {_spelled(number)}\b", words))
    wrong = rf"\b(?:wrong|incorrect) (?:number|count|amount) of {things}\b"
    return bool(re.search(rf"{wrong}|\b(?:too (?:many|few)|extra|missing) {things}\b{_ALONE}", words))


def _spelled(number: int) -> str:
    return rf"(?:{number}|{_NUMBERS[number]})" if number < len(_NUMBERS) else str(number)


def _counted(things: str) -> str:
    """Matches a number of things, perhaps with adjectives between."""
    return rf"(?<![\w.,/])({_NUMBER}) (?:(?!(?:and|or|of|in|on|with)\b)[^\W\d]+ ){{0,2}}{things}\b"


def _any_number_of(thing: str) -> str:
    """Matches a thing in the singular or in the plural."""
    name = thing.strip()
    forms = {name, f"{name}s", f"{name}es", name.removesuffix("s"), name.removesuffix("es")}
    forms |= {re.sub(r"ies\Z", "y", name), re.sub(r"y\Z", "ies", name)}
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


def _value(word: str) -> int:
    return _NUMBERS.index(word) if word in _NUMBERS else int(word)


# --- what stands beside the answers -----------------------------------------------------------------------------------

_POSITIVE_NAME: Final = re.compile(
    r"(?:.*_)?(?:overall|met|satisf(?:ied|ies)|fulfill?ed|match(?:es|ed)?|pass(?:es|ed)?|correct|valid|verified|success"
    r"|ok|answer|verdict|result|judge?ment|decision|conclusion|compliant|compliance|holds?|accurate|status|assessment)"
    r"(?:_(?:verdict|result|answer|assessment|status|match|pass|met|yes_no))?"
)
_NEGATIVE_NAME: Final = re.compile(
    r"(?:(?:is|was|has|did)_)?(?:fail(?:s|ed|ure)?|mismatch(?:ed)?|violat(?:ed|ion)|unmet|incorrect|wrong"
    r"|contradict(?:ion|s|ed|ory))"
)
_OTHER_NAME: Final = re.compile(
    r"(?:.*_)?(?:not|no|un\w*|if|should|expected|previous|before|prior|initial|first|draft|example|old|ocr)(?:_.*)?"
)
_FAILURES: Final = re.compile(
    r"(?:.*_)?(?:fail(?:s|ed|ures?)?|unmet|violat(?:ed|ions?)|mismatch(?:es|ed)?|unsatisfied|unfulfilled|not_met)"
    r"(?:_(?:requirements?|questions?|checks?|ids?|criteria|items?))?"
)


def says_no_beside(name: object, value: object) -> bool:
    """Whether a field with a name says no, beside the answer itself."""
    plain = field_name(name).rstrip("?")
    if _NEGATIVE_NAME.fullmatch(plain):
        return value is True
    if not isinstance(value, (str, bool)) or not _POSITIVE_NAME.fullmatch(plain) or _OTHER_NAME.fullmatch(plain):
        return False
    try:
        return read_answer(value) == "no" or bool(isinstance(value, str) and _IN_PART.match(value))
    except ValueError:
        return False


_IN_PART: Final = re.compile(r"\W*(?:part(?:ial|ially|ly)?|mixed|unsure|uncertain|unclear)\b", re.IGNORECASE)
"""Matches what is not quite a yes."""


def contradicted(remarks: Sequence[Remark], requirements: Sequence[Requirement]) -> tuple[set[str], bool]:
    """What an answer says against its own answers, see ``remarks_beside``.

    Returns:
        The questions to which the answer is no by that; and whether the image as a whole is said to fail.
    """
    questions = {requirement.id: requirement.question for requirement in requirements}
    denied, is_failure = set[str](), False
    for remark in remarks:
        name, value, about = remark.name, remark.value, remark.question_id
        if names_failures(name):
            failures = _real_failures(value) if isinstance(value, Mapping) else value
            if isinstance(value, (str, list, Mapping)):
                denied |= {i for i in questions if re.search(rf"(?<!\w){re.escape(i)}(?!\w)", json.dumps(failures))}
        elif about:
            denied |= {about} if _is_against(remark, questions[about]) else set()
        elif isinstance(value, str):
            words = plain_words(value)
            denied |= {i for i, question in questions.items() if _is_denied_in(words, i, question)}
            is_failure = is_failure or says_failure(value)
            if _FAULTS.fullmatch(name):
                denied |= {i for i, question in questions.items() if flaws_deny(question, value)}
        is_failure = is_failure or (not about and says_no_beside(name, value))
    return denied, is_failure


_FAULTS: Final = re.compile(r"(?:.*_)?(?:issue|problem|error|mistake|defect|flaw|fault|concern|discrepanc(?:y|ies))s?")
"""Matches the names of what is wrong with an image, in which a no says that nothing is."""
_COUNTED_NAME: Final = re.compile(
    r"(?:actual|observed|counted|detected|seen)(?:_(?:count|number|value))?|(?:number|count|num)"
    r"(?:_(?:seen|found|observed|visible|detected))?|found_count|visible_count"
)
"""Matches the names of how many things are in an image."""


def _is_against(remark: Remark, question: str) -> bool:
    """Whether a remark about a question denies a yes to it."""
    name, value = remark.name, remark.value
    if any(_OTHER_NAME.fullmatch(owner) or names_failures(owner) for owner in (name, *remark.owners)):
        return False
    if isinstance(value, bool) or (isinstance(value, str) and is_one_word(value)):
        is_absent = name in ("missing", "absent") and read_answer(value) == "yes" and not read(question).is_negated
        return is_absent or says_no_beside(name, value) or (remark.is_answer and read_answer(value) == "no")
    if isinstance(value, (int, float)):
        match = _COUNT_QUESTION.search(" ".join(plain_words(question).split()))
        return bool(match and _COUNTED_NAME.fullmatch(name) and value != _value(match["number"]))
    if not isinstance(value, str):
        return False
    is_doubt = flaws_deny if _FAULTS.fullmatch(name) else denies
    words = plain_words(value)
    return (
        is_doubt(question, value) or says_no_beside(name, value) or _is_denied_in(words, remark.question_id, question)
    )


def names_failures(name: object) -> bool:
    """Whether a field with a name has what is not as it was asked for, so that a no in it is no answer."""
    return _FAILURES.fullmatch(field_name(name)) is not None


def _real_failures(failures: Mapping[Any, Any]) -> dict[Any, Any]:
    """Failures by name, without those of which it says that they are none."""
    nothing = ("none", "no", "false")
    return {key: value for key, value in failures.items() if value and str(value).casefold() not in nothing}


_PLAIN_NO: Final = (
    r"no\b(?=\W*\Z|\s*[,.;:!?()\]|\n–—→-]|\s+(?:as|because|since|there (?:is|are)|due|but|given|while)\b)"
)
"""Matches a no that is an answer, not the beginning of "no people"."""
_OVERALL: Final = re.compile(
    r"(?:^|[\n.!])[\W_]*(?:(?:overall|final|the|verdict|result|assessment|conclusion|image|status)[\W_]+){1,4}"
    rf"(?:is |was )?(?:fail(?:s|ed)?\b(?! to (?:find|see|detect|spot)\b)|{_PLAIN_NO}|rejected\b"
    r"|not (?:met|satisfied|correct)\b)"
    r"|(?<!if the )(?<!if this )\b(?:image|picture) (?:does not|doesn't|fails to) (?:fully |completely )?"
    r"(?:match|meet|satisfy|fulfil|follow)(?=\W*(?:\Z|[.;,\n]))"
    r"|(?<!if the )(?<!if this )\b(?:image|picture) (?:does not|doesn't|fails to) (?:fully |completely )?"
    r"(?:match|meet|satisfy|fulfil|follow)\b[^.;\n]{0,40}\b(?:prompt|description|request|requirement|question|criteri"
    r"|condition|specification|brief|instruction|asked|all\b|wanted|intended)"
    r"|\bnot all (?:\w+ )?(?:requirements|questions|conditions|criteria) (?:are|were) (?:met|satisfied|fulfilled)"
)


def says_failure(text: str) -> bool:
    """Whether a text says of the whole image that it is not what was asked for."""
    return bool(_OVERALL.search(plain_words(text)))


_NO: Final = (
    r"(?:is |was |should be |must be |becomes |to be |to |are )*(?:the )?(?:answer )?(?:is |should be )?"
    r"(?:actually |really |in fact |therefore |clearly |still |in reality )*"
    rf"(?P<answer>{_PLAIN_NO}|false|fails?|failed|incorrect|wrong|unmet|not (?:met|satisfied|fulfilled|true|correct)"
    r"|yes|true|met|satisfied|correct|pass(?:es|ed)?)\b"
    r"(?! (?:issue|problem|error|flaw|artefact|artifact|defect|doubt)s?)"
)
_NEGATIVE: Final = re.compile(r"no|false|fail|incorrect|wrong|unmet|not ")


def _is_denied_in(words: str, name: str, question: str) -> bool:
    """Whether a text says no to a question that it names, in the last place where it answers it."""
    place = rf"(?<!\w){re.escape(plain_words(name))}(?!\w)[\s)\]'(]*(?:[:=,–—→>|-]+\s*)*[\['(]*"
    answers = [*re.finditer(rf"{place}{_NO}(?=(?P<rest>[^\n]*))", words)]
    if answers:
        says_no = _NEGATIVE.match(answers[-1]["answer"]) is not None
        return says_no and not (read(question).is_negated and _begins_absent(answers[-1]["rest"]))
    remarks = [*re.finditer(rf"{place}(?=(?P<remark>[^\n|]+))", words)]
    return bool(remarks) and _is_remark_against(question, remarks[-1]["remark"])


def _is_remark_against(question: str, remark: str) -> bool:
    is_other_answer = re.search(r"(?<!\w)[a-z]{1,3}\d+\b|\b(?:yes|true|met|satisfied)\b|[✓✔✅]", remark)
    return not is_other_answer and denies(question, remark)
