"""Images in the JSON of a server's answer: as base64, as a data URL or by address, wherever they stand in it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import httpx
from PIL import Image
from pydantic_core import from_json

from gems.errors import (
    BackendError,
    ContentRefusedError,
    is_passing_status,
    is_rate_limited,
    is_unpaid,
    may_cost,
    meant_status,
)
from gems.models.grounds import shows_nothing
from gems.models.lenient import field_name, is_broken_json, json_values
from gems.models.servers.addresses import own_address
from gems.models.servers.base import RemoteGenerator
from gems.models.servers.bodies import is_image_file, is_packed, is_page
from gems.models.servers.error_texts import (
    error_message,
    is_busy_kind,
    is_refusal,
    json_body,
    kind_of_error,
    minimax_status,
    status_of_error,
    words_of,
)
from gems.models.servers.http_client import advice_on
from gems.models.servers.image_flags import filter_reason, is_flagged
from gems.models.servers.retries import PassingError, charged
from gems.secrets import one_line

__all__ = ["JsonImages", "decode_base64", "mapping_in", "read_answer"]

_ADDRESSES: Final = ("url", "image_url", "uri")
_SOURCES: Final = (
    *("b64_json", "b64", "base64", "base64_json", "image_base64", "bytesbase64encoded", "image", "images", "data"),
    *("artifacts", "output", "outputs", "result", "results", "predictions", *_ADDRESSES),
)
"""The names, in lower case, under which servers put an image or a list of images; addresses last."""

_NOT_DRAWN: Final = frozenset({"content_filtered", "error"})
"""Reasons, in lower case, why what stands beside them is not the image: it is blurred, or empty."""

_UNFINISHED: Final = re.compile(
    r"(?:.*[._ ])?(?:partial|preview|progress)(?:[._ ]?image)?|queued|pending|processing|running|starting"
    r"|in[ _-]?(?:progress|queue)",
    re.I,
)
"""How an item says that what stands in it is the image on its way."""

_OF_OTHERS: Final = re.compile(
    r"(?:.*[._ -])?(?:partial|preview|progress|interim|intermediate|draft|thumb(?:nail)?|thought|mask|input|reference)"
    r"(?:[._ -]?image)?",
    re.I,
)
"""How an item says that what stands in it is not the image, but something beside it."""
_KINDS: Final = ("type", "kind", "role", "purpose", "variant", "stage", "label", "category")
_INTERIM: Final = ("thought", "is_thought", "partial", "is_partial", "is_preview", "interim", "is_thumbnail")
"""Names of what is true of an image on its way, such as those between which Gemini thinks."""

_ADDRESS: Final = re.compile(
    r"(?:[a-z][a-z0-9+.-]*:)?//|\.{1,2}/|/(?!9j/)|[\w.%~-]+(?:/[\w.%~-]+)*\.(?:png|jpe?g|webp|avif)\b", re.I
)
"""Matches an address at the beginning; a slash may also begin the base64 of a JPEG."""
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_=%-]{40}")
"""Matches the beginning of base64 that can be an image, and not of a sentence."""
_DATA_URL: Final = re.compile(r"data:(?:image/|[\w/+.;=-]{0,80};base64,)", re.I)
_PREFIX: Final = re.compile(r"\ufeff?\s*(?:(?:data:)?[\w/+.-]{0,60}[^,:]{0,60};)?base64[,:]\s*|\ufeff", re.I)
"""Matches what is written before base64: the beginning of a data URL, or a part of it."""
_QUOTED: Final = re.compile(r"\A(?:b'|[\"'])(?P<text>(?=[A-Za-z0-9+/_-]{40}|data:))")
_MAX_ADDRESS: Final = 4096

_EMBEDDED: Final = re.compile(
    r"(?P<data>data:[\w/+.;=-]{0,80};base64,[A-Za-z0-9+/_=%-]{40,})"
    r"|!\[[^\[\]]{0,200}\]\((?P<address>(?!data:)[^)\s\[]{1,4096})\)"
)
"""Matches an image inside of a text: a data URL, or the address in Markdown. Neither holds the bracket of another
one, so that a text of many beginnings is searched in a moment."""
_NAMES_OF_IMAGES: Final = re.compile(
    r"image|img|b64|base64|content|data|url|uri|file|link|src|sample|output|result", re.I
)
_NAMES_OF_OTHERS: Final = re.compile(
    r"thumb|preview|partial|logo|icon|avatar|input|init|mask|reference|request|prompt|source_|error|doc|help|web|status"
    r"|poll|cancel|callback|get|control|blur",
    re.I,
)
_IMAGE_FILE: Final = re.compile(r"[^\s?#]+\.(?:png|jpe?g|webp|avif)(?:[?#]\S*)?", re.I)


_BUSY: Final = re.compile(
    r"\W*(?:(?:error|the|all|our|this|servers?|service|model(?: \S{1,80}(?= is ))?|queue|system|gpus?|engine|workers?"
    r"|backend|endpoint|is|are|currently|too|temporarily|still|please|you|quota|request|was)\W+)*"
    r"(?:busy|overloaded|loading|unavailable|full|warming up|(?:at|out of|over) capacity|too many requests|slow down"
    r"|(?:try|retry)(?: again)? later|rate.?limit(?:s|ed)?\b|throttled"
    r"|no (?:free |idle |available )?(?:worker|gpu|slot|capacity)|繁忙)",
    re.I,
)
_QUOTES: Final = re.compile(r"(?<!\w)[\"'`“].*?[\"'`”](?!\w)", re.DOTALL)
"""Matches what a server repeats, such as a part of the prompt."""
_IN_BACKGROUND: Final = re.compile(
    r"queued|pending|processing|in[ _-]?(?:progress|queue)|accepted|starting|started|running|submitted|created"
    r"|waiting",
    re.I,
)
"""How a server says that it has taken a request as a job."""
_ACCEPTANCES: Final = re.compile(
    r"\b(?:(?:en)?queued|in (?:the |our )?queue|submitted|started|created|accepted|received|scheduled|processing"
    r"|in progress|generating|being \w+ed|being drawn|success\w*)\b|成功|排队|已提交|已接收|处理中|生成中",
    re.I,
)
"""The same in a sentence."""
_FAILURES: Final = re.compile(r"fail|error|cancel|reject|denied|expired|abort|invalid", re.I)
"""How it says that nothing comes of it."""
_FAULTS: Final = re.compile(
    rf"{_FAILURES.pattern}|\b(?:no|not|never|cannot|unable|must|missing|require[sd]?|unknown|unsupported|exceed(?:s|ed)?"
    r"|insufficient|forbidden|unauthori[sz]ed|refuse[sd]?|wrong|bad|too|blocked|disabled|limit(?:s|ed)?)\b|n['’]t\b"
    r"|[不未]|失败|错误|无效|异常|超出|缺少|禁止|拒绝",
    re.I,
)
"""The same in a sentence."""
_FAULTLESS: Final = re.compile(r"\b(?:no|without(?: any)?|0) (?:error|failure|problem)s?\b", re.I)
_JOB_NAMES: Final = frozenset(
    {"task_id", "job_id", "prompt_id", "status_url", "polling_url", "response_url", "fetch_result", "eta"}
)
"""Names in an answer about an image that is drawn later."""
_ID_NAMES: Final = (
    *("id", "uuid", "generation_id", "prediction_id", "inference_id", "workflow_id", "execution_id", "run_id"),
    *("process_id", "image_id"),
)
"""Names of what a server may be asked for later, or of a number that any answer has."""
_NUMBER: Final = re.compile(r"(?=\S*\d)[\w-]+")
"""Matches an id that is a whole answer."""
_STATES: Final = ("status", "state", "task_status", "job_status")
_FRAMES: Final = ("data", "output", "result", "response", "task", "job")
"""Names under which servers put what they say of a job."""
_SUCCESS: Final = re.compile(
    r"\W*(?:ok|okay|success(?:ful(?:ly)?)?|succeed(?:ed)?|done|completed?|200|(?:操作|请求)?成功)\W*", re.I
)
"""How a server says that there is no fault, as some do in each answer."""
_INTERNAL: Final = re.compile(
    r"(?<![a-z])(?:internal(?:[ _.-]?(?:server[ _.-]?)?(?:error|failure))?|server[ _.-]?error)(?![a-z])", re.I
)
"""How servers class an error of their own, which with another status would be a 500."""
_INTERNAL_WORDS: Final = re.compile(r"internal server error|(?:the )?server had an error", re.I)
"""How they begin to tell of it."""


_ERROR_NAMES: Final = ("error", "errors")
_DEPTH: Final = 4
_MOST_ERRORS: Final = 4


class _Source(NamedTuple):
    text: str
    is_address: bool


class _Answer(NamedTuple):
    file: bytes = b""
    """The image file, if there is no choice."""
    sources: Sequence[_Source] = ()
    is_suspect: bool = False
    """Whether the server says that its filter may have blacked out the image."""


class JsonImages(RemoteGenerator):
    """A generator whose server answers with JSON that holds images, or the address of one."""

    answers_at = ""
    """The path, after the server's address, that relative addresses in an answer are relative to."""

    async def image_in(self, body: bytes, deadline: float) -> bytes | Image.Image:
        """The first image in an answer that can be read.

        Raises:
            PassingError: The answer is torn, or the server may answer with an image later.
            ContentRefusedError: The server refuses to draw the prompt, or its filter has stopped the image.
            BackendError: There is no image, in the server's words.
        """
        answer = await asyncio.to_thread(self._read, body)
        with charged():
            image = answer.file or await self._first_image(answer.sources, deadline)
        if answer.is_suspect:
            with charged():
                image = await self.decode(image) if isinstance(image, bytes) else image
            if shows_nothing(image):
                raise ContentRefusedError(f"{self.title}: the server's filter has blacked out the image")
        return image

    def file_in(self, body: bytes) -> bytes:
        """See ``ServerClient.file_in``: some gateways put files into JSON."""
        file = super().file_in(body)
        if not is_image_file(file) and isinstance(answer := json_body(file), (Mapping, list)):
            for source in (*_sources_of(answer), *_sources_elsewhere(answer)):
                with contextlib.suppress(BackendError):
                    if not source.is_address and is_image_file(data := decode_base64(source.text, self.title)):
                        return data
        return file

    def _read(self, body: bytes) -> _Answer:
        if is_image_file(body.lstrip(b"\r\n")):  # the image itself
            return _Answer(body.lstrip(b"\r\n"))
        if is_packed(body):
            fault = "a damaged file (gzip), which may be charged; let it send plain answers"
            with charged():
                raise BackendError(f"{self.title}: the server answers with {fault}", retryable=False)
        answer = read_answer(body)
        if answer is None and body.strip() != b"null":
            words = one_line(error_message(body))
            if is_busy(words):
                raise PassingError(f"{self.title}: the server answers without an image: {words}")
            if is_page(body):
                fault = f"is a page, such as one to log in: {self._host} needs another address, or a key"
            else:
                fault = f"is not JSON{words and f': {words}'}" if body.strip() else "is empty"
            raise PassingError(f"{self.title}: the server's answer {fault}", may_cost=True)
        if reason := filter_reason(answer):
            raise ContentRefusedError(f"{self.title}: the server's filter stopped the image: {one_line(reason, 60)}")
        sources = list(_sources_of(answer)) or list(_sources_elsewhere(answer))
        if not sources:
            raise self.failure(answer, body)
        is_only = len(sources) == 1 and not sources[0].is_address
        return _Answer(decode_base64(sources[0].text, self.title) if is_only else b"", sources, is_flagged(answer))

    async def _first_image(self, sources: Sequence[_Source], deadline: float) -> bytes | Image.Image:
        errors: list[BackendError] = []
        for text, is_address in sources:
            try:
                if is_address:
                    return await self._download(text, deadline)
                return await self.decode(await asyncio.to_thread(decode_base64, text, self.title))
            except BackendError as failure:
                errors.append(failure)
                if time.monotonic() > deadline:
                    break
        raise errors[0]

    def failure(self, answer: object, body: bytes) -> BackendError:
        """The error in an answer without an image, in the server's words."""
        words = error_message(body) if isinstance(answer, str) or json_body(body) is not None else words_of(answer)
        fault = one_line(words if mapping_in(answer) or isinstance(answer, str) else "")
        reason = fault = fault or one_line(_faults_of_items(answer))
        if not reason and (reason := one_line(" ".join(_words_of_model(answer)))) and _DECLINES.search(reason):
            return ContentRefusedError(f"{self.title}: the model refuses to draw this: {reason}")
        message = f"{self.title}: the server answers without an image: {reason or 'no image'}"
        if reason and (is_refusal(body) or is_refusal(reason.encode())):
            return ContentRefusedError(message)
        if is_flagged(answer):
            return ContentRefusedError(f"{self.title}: the server's filter stopped the image")
        errors = list(_errors_in(answer))
        kinds = " ".join([*map(kind_of_error, errors), reason if " " not in reason else ""])
        status = next(filter(None, map(status_of_error, errors)), None)
        is_fault = bool(status) or _says_fault(answer, reason)
        is_job = not is_fault and _is_job(answer, reason)
        may_pass = is_job or not (is_unpaid(reason) or is_unpaid(f"{reason} {kinds}"))  # a job may tell of its price
        if may_pass and not is_job and (is_busy(reason) or (not status and is_busy_kind(kinds))):
            return PassingError(message)
        words = f"{_QUOTES.sub('', reason)} {kinds}".strip()
        status = status or (500 if _INTERNAL.search(kinds) or _INTERNAL_WORDS.match(reason) else 400)
        true_status = meant_status(status, words) if may_pass else 402
        if is_passing_status(true_status) and not is_job:
            return PassingError(message, may_cost=may_cost(true_status))
        if is_job:
            message += " (it draws in the background: give an address that answers with the image)"
        error = BackendError(f"{message}{advice_on(true_status, words)}", retryable=False)
        # Where no fault is told, whatever was done may be charged.
        error.may_cost = not fault or not (is_fault or true_status == 402)
        return error

    async def _download(self, address: str, deadline: float) -> Image.Image:
        """Download an image, from the configured server only: no other host may be contacted in its place."""
        try:
            url = self._full(self.answers_at).join(address)
        except (httpx.InvalidURL, ValueError):
            raise BackendError(
                f"{self.title}: the server sends an image at no valid address", retryable=False
            ) from None
        own = own_address(self.url, url)
        if own is None:
            fault = f"the server sends an image from another host ({url.host or url.scheme}), which is not fetched"
            raise BackendError(f"{self.title}: {fault}; let it answer in base64", retryable=False)
        return await self.fetch_image(str(own), deadline)


def _errors_in(answer: object, depth: int = _DEPTH) -> Iterator[Mapping[str, Any]]:
    """What an answer without an image says of its fault, the innermost first; an error that is a word has that code."""
    if isinstance(answer, list):
        for item in answer[:_MOST_ERRORS]:
            yield from _errors_in(item, depth - 1)
    elif isinstance(answer, Mapping) and depth > 0:
        fields = {str(name).lower(): value for name, value in answer.items()}
        for name in (*_ERROR_NAMES, "detail", "data", "result", "response"):
            yield from _errors_in(fields.get(name), depth - 1)
        report = fields.get("base_resp")
        if isinstance(report, Mapping):
            yield {"status": minimax_status(report)}
        word = fields.get("error")
        yield fields | ({"code": fields.get("code") or word} if isinstance(word, str) and " " not in word else {})


def _says_fault(answer: object, reason: str) -> bool:
    """Whether a server says that nothing comes of the request; ``reason`` is what it says at all."""
    parts = _parts(answer)
    if any(map(_FAILURES.search, _states(parts))) or any(
        _says_error(part.get(name)) for part in parts for name in _ERROR_NAMES
    ):
        return True
    if any(part.get(name) is False for part in parts for name in ("success", "ok")):
        return True
    words = _FAULTLESS.sub("", _QUOTES.sub("", reason))
    beginning = _SENTENCE_ENDS.split(words.strip(), maxsplit=1)[0]  # then, some say what to do if it fails later
    is_taken = _ACCEPTANCES.search(beginning) and not _FAULTS.search(beginning)
    return not is_taken and bool(_FAULTS.search(words) or is_unpaid(words)) and not is_busy(reason)


_SENTENCE_ENDS: Final = re.compile(r"[.!;](?:\s|\Z)|[。！；]")


def _is_job(answer: object, reason: str) -> bool:
    """Whether a server that tells of no fault has taken the request, and draws later, by all that it says."""
    parts = _parts(answer)
    if any(part.get(name) for part in parts for name in (*_JOB_NAMES, *_ID_NAMES)):
        return True
    has_number = _NUMBER.fullmatch(reason) if isinstance(answer, str) else _is_of_request(parts)
    in_background = any(map(_IN_BACKGROUND.fullmatch, (*_states(parts), reason)))
    return bool(has_number) or in_background or bool(_ACCEPTANCES.search(reason) and not _SUCCESS.fullmatch(reason))


def _is_of_request(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is the number of a request, and no list for images, beside which many servers give one."""
    has_list = any(isinstance(part.get(name), list) for part in parts for name in _SOURCES)
    return not has_list and any(part.get("request_id") for part in parts)


def _parts(answer: object) -> list[dict[str, Any]]:
    """An answer, and what it holds of a job."""
    fields = _fields(answer)
    frames = (value for name, value in fields.items() if name in _FRAMES or name.endswith("_job"))
    return [fields, *map(_fields, frames)]


def _states(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(part.get(name)) for part in parts for name in _STATES]


def _fields(answer: object) -> dict[str, Any]:
    return {field_name(name): value for name, value in mapping_in(answer).items()}


def _says_error(error: object) -> bool:
    """Whether there is anything in an error: some servers put an empty one into each answer."""
    return any(map(_says_error, error.values())) if isinstance(error, Mapping) else bool(error)


def is_busy(words: str) -> bool:
    """Whether a server says that it has no time for a request, so that it has drawn nothing for it.

    Mostly from how the words begin: what follows may be about the prompt.
    """
    return bool(_BUSY.match(words) or is_rate_limited(_QUOTES.sub("", words))) and not is_unpaid(words)


def decode_base64(encoded: str, source: str) -> bytes:
    """Decode base64 or a data URL, in either alphabet, with line breaks and without padding; also twice, or in hex.

    Raises:
        PassingError: It is torn.
    """
    with contextlib.suppress(ValueError):  # as most servers send it
        if is_image_file(data := base64.b64decode(encoded, validate=True)):
            return data
    marker = "base64,"  # the end of a data URL's header
    if encoded[:5].lower() == "data:" and marker not in encoded[:200]:
        return unquote_to_bytes(encoded.partition(",")[2])
    encoded = unquote(encoded) if "%" in encoded else encoded
    start = encoded.find(marker, 0, 200)
    text = "".join((encoded[start + len(marker) :] if start >= 0 else encoded).replace("\\n", "").split()).rstrip(
        "='\""
    )
    try:
        if hexadecimal := _HEX.match(text):
            return bytes.fromhex(text[hexadecimal.end() :])
        data = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise PassingError(f"{source}: the server sent torn base64", may_cost=True) from None
    return decode_base64(data.decode("ascii", "replace"), source) if _ENCODED_TWICE.match(data) else data


_HEX: Final = re.compile(r"(?:0x|\\?\\x)?(?=89504e47|ffd8ff|52494646)", re.I)
"""Matches what is before an image file in hexadecimal digits."""
_ENCODED_TWICE: Final = re.compile(rb"data:image/|iVBORw0KGgo|/9j/|UklGR|89504e47|ffd8ff", re.I)
"""Matches how an image file begins in base64 or hexadecimal digits."""


def read_answer(body: bytes) -> Any:
    """The JSON of an answer, also of one that was streamed although nobody asked for that, or base64 without any.

    None if the answer is nothing of that kind.
    """
    try:
        return from_json(body)  # faster than ``json_body``, and images are long
    except ValueError:
        if (answer := json_body(body)) is not None:
            return answer
    data = [line[5:] for line in body.splitlines() if line.startswith(b"data:")]
    if events := [event for event in map(json_body, data) if isinstance(event, Mapping)]:
        return events[::-1]
    text = body.decode("utf-8", "replace").strip()
    if any(_source_in(text, may_be_address=False)) or _IMAGE_FILE.fullmatch(text[:_MAX_ADDRESS]):
        return text
    # What is around the JSON, or wrong with it, does not matter: the image is paid, and another one would be too.
    values = [] if "<html" in text[:4000].lower() else [v for v in json_values(text)[::-1] if _has_objects(v)]
    has_image = any(True for _ in (*_sources_of(values), *_sources_elsewhere(values)))
    return values if values and (has_image or not is_broken_json(text)) else None


def _has_objects(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))


def _sources_of(answer: object, depth: int = 6, *, is_address: bool = False) -> Iterator[_Source]:
    """The base64, data URLs and addresses in an answer, in the order in which to try them."""
    if isinstance(answer, str) and answer.lstrip()[:1] in ("{", "["):
        answer = json_body(answer.encode("utf-8", "replace"))
    if isinstance(answer, str):
        yield from _source_in(answer.strip(), is_named_address=is_address)
    elif isinstance(answer, Mapping) and answer and all(str(name).isdecimal() for name in answer):  # a list, by PHP
        yield from _sources_of(list(answer.values()), depth, is_address=is_address)
    elif isinstance(answer, Mapping) and depth:
        values = {str(name).lower(): value for name, value in answer.items()}
        if _is_drawn(answer):
            for name in _SOURCES:
                yield from _sources_of(values.get(name), depth - 1, is_address=name in _ADDRESSES)
    elif isinstance(answer, list) and depth:
        if encoded := _of_numbers(answer):
            yield _Source(encoded, is_address=False)
            return
        for item in answer:
            yield from _sources_of(item, depth - 1, is_address=is_address)


def _of_numbers(items: list[Any]) -> str:
    """The base64 of an image file that is written as a list of its bytes; empty for any other list."""
    if len(items) < _LEAST_BYTES or not all(type(item) is int and 0 <= item < 256 for item in items):
        return ""
    data = bytes(items)
    return base64.b64encode(data).decode("ascii") if is_image_file(data) else ""


_LEAST_BYTES: Final = 32


def _sources_elsewhere(answer: object, depth: int = 8, *, name: str = "") -> Iterator[_Source]:
    """Images under names that are not known, where no other name says that they are something else."""
    if isinstance(answer, Mapping) and depth and not answer.get("error") and _is_drawn(answer):
        for key, value in answer.items():
            if not _NAMES_OF_OTHERS.search(str(key)):
                yield from _sources_elsewhere(value, depth - 1, name=str(key))
    elif isinstance(answer, list) and depth:
        for item in answer:
            yield from _sources_elsewhere(item, depth - 1, name=name)
    elif isinstance(answer, str):
        for match in _EMBEDDED.finditer(answer):
            yield _Source(match["data"] or match["address"], is_address=not match["data"])
        text = answer.strip().strip("'\"")
        if not _EMBEDDED.search(answer) and _NAMES_OF_IMAGES.search(name):
            if _IMAGE_FILE.fullmatch(text[:_MAX_ADDRESS]) or (
                name.lower().endswith(("url", "urls")) and _ADDRESS.match(text)
            ):
                yield _Source(text, is_address=True)
            elif _is_encoded_image(text):
                yield _Source(text, is_address=False)


def _is_drawn(item: Mapping[str, Any]) -> bool:
    """Whether what stands in an item may be the image, and not one on its way to it, or made of it or for it."""
    values = {field_name(name): value for name, value in item.items()}
    words = [str(values.get(name)) for name in ("status", "state", "type", "event")]
    is_other = any(_OF_OTHERS.fullmatch(str(values.get(name))) for name in _KINDS)
    is_interim = (
        any(values.get(name) is True for name in _INTERIM) or values.get("is_final", values.get("final")) is False
    )
    is_fit = str(values.get("finish_reason")).lower() not in _NOT_DRAWN
    return is_fit and not (is_other or is_interim or any(map(_UNFINISHED.fullmatch, words)))


def _is_encoded_image(text: str) -> bool:
    """Whether a text begins like the base64 of an image."""
    beginning = "".join(text[:400].split())
    try:
        return is_image_file(decode_base64(beginning[: len(beginning) // 4 * 4], ""))
    except PassingError:
        return False


def _source_in(text: str, *, may_be_address: bool = True, is_named_address: bool = False) -> Iterator[_Source]:
    """The image that a text stands for; nothing if it is a sentence."""
    text = _QUOTED.sub(r"\g<text>", text[:_MAX_ADDRESS]) + text[_MAX_ADDRESS:]
    if (prefix := _PREFIX.match(text)) and _BASE64.match(text, prefix.end()):
        yield _Source(text[prefix.end() :], is_address=False)
        return
    if _DATA_URL.match(text) or _BASE64.match("".join(text[:80].splitlines())) or _is_encoded_image(text):
        is_address = is_named_address and text[:5].lower() != "data:" and len(text) < _MAX_ADDRESS
        yield _Source(text, is_address or bool(may_be_address and _ADDRESS.match(text[:_MAX_ADDRESS])))
    elif may_be_address and text and " " not in text and (is_named_address or _ADDRESS.match(text)):
        yield _Source(text, is_address=True)


def mapping_in(answer: object) -> Mapping[str, Any]:
    """The answer, or the first item of a list, as an object; an empty one if it is none."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    return first if isinstance(first, Mapping) else {}


_TEXTS: Final = ("text", "content", "output_text", "refusal")
"""Names of what a model writes in place of an image."""
_DECLINES: Final = re.compile(
    r"\bi(?: am|['’]m) (?:sorry\b[^.]{0,40}\bi(?: am|['’]m) )?(?:unable|not able|not allowed) to\b"
    r"|\bi (?:can ?not|can['’]t|won['’]t|will not|must decline) "
    r"|\bagainst (?:my|our|the) (?:\w+ ){0,2}(?:polic|guideline)"
    r"|\bviolat\w+ (?:\S+ ){0,4}(?:polic|guideline|terms)",
    re.IGNORECASE,
)
"""How models say that they will not draw a prompt."""


def _words_of_model(answer: object, depth: int = 8) -> Iterator[str]:
    """What a model that can write as well has written, without what it thought."""
    if isinstance(answer, list) and depth:
        for item in answer[:_MOST_PARTS]:
            yield from _words_of_model(item, depth - 1)
    elif isinstance(answer, Mapping) and depth and answer.get("thought") is not True:
        for name, value in answer.items():
            if not isinstance(value, str):
                yield from _words_of_model(value, depth - 1)
            elif field_name(name) in _TEXTS and " " in value.strip():
                yield value.strip()


_MOST_PARTS: Final = 8


def _faults_of_items(answer: object) -> str:
    """What the items of an answer say that should be images."""
    values = {str(name).lower(): value for name, value in mapping_in(answer).items()}
    lists = [value for name in _SOURCES if isinstance(value := values.get(name), list)]
    return words_of([item for items in lists for item in items if isinstance(item, Mapping) and item])
