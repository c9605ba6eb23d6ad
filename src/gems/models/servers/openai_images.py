"""Image servers: servers with OpenAI's images API, and plain endpoints that answer with an image.

One adapter serves OpenAI, vLLM-Omni and SGLang Diffusion. It sends one request per image, never n > 1, so that each
image of a round can be drawn again alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent
from PIL import Image
from pydantic import SecretStr

from gems.errors import BackendError, ContentRefusedError
from gems.models.generators import ASKS, ImageRequest, Step, edit_instruction, joint_negative_prompt
from gems.models.servers.base import CHECK_TIMEOUT, explain_options
from gems.models.servers.bodies import is_image_file, is_packed, is_page, is_text, read_body
from gems.models.servers.error_texts import error_message, is_refusal, json_body, refused_fields
from gems.models.servers.http_client import RejectedError, advice_on
from gems.models.servers.image_answers import JsonImages, decode_base64, is_busy, mapping_in, read_answer
from gems.models.servers.image_files import decode_image
from gems.models.servers.retries import PassingError, charged
from gems.options import GeneratorOptions
from gems.secrets import one_line

__all__ = ["OpenAIImages", "PlainImages"]

_T = TypeVar("_T")

_EVENTS: Final = "text/event-stream"
_OPENAI: Final = "https://api.openai.com/v1"
_COMMON_OPTIONS: Final = frozenset({"base_url", "api_key", "timeout", "concurrency", "width", "height"})
"""Options that every server supports."""
_EXTENSIONS: Final = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "negative_prompt": "negative_prompt",
}
"""Options, and their names in vLLM-Omni and SGLang Diffusion. OpenAI's own API has none of them."""

_OPTIONAL_FIELDS: Final = ("seed", "response_format")
"""Fields of a request that a server may refuse, and that an image can be asked for without."""

_MAX_PARTIAL_IMAGES: Final = 3
"""The most previews per image that OpenAI streams."""

_SIZES: Final = {
    "gpt-image-1": ("1024x1024", "1536x1024", "1024x1536"),
    "dall-e-3": ("1024x1024", "1792x1024", "1024x1792"),
    "dall-e-2": ("256x256", "512x512", "1024x1024"),
}
"""The sizes of OpenAI's models, by the beginning of their names (https://platform.openai.com/docs/api-reference/images)."""


class OpenAIImages(JsonImages):
    """``POST /v1/images/generations`` and, for models that edit, ``/v1/images/edits``.

    Every server gets the seed, except OpenAI's own, which has no seeds, so that its runs cannot be replayed. If a
    server refuses the seed, later requests leave it out.

    Args:
        model: The model's name on the server.
        name: The name of this backend in records.
        options: How images are drawn. The defaults of base URL and key are GEMS_IMAGE_BASE_URL and GEMS_IMAGE_API_KEY,
            or else OPENAI_BASE_URL and OPENAI_API_KEY.
    """

    answers_at = "/images/generations"

    def __init__(self, model: str, *, name: str, options: GeneratorOptions) -> None:
        base_url = options.base_url or _from_environment("BASE_URL") or _OPENAI
        environment_key = _from_environment("API_KEY")
        key = options.api_key or (SecretStr(environment_key) if environment_key else None)
        super().__init__(name, base_url, options, key)
        self.model = model
        self.is_openai = self.url.host == httpx.URL(_OPENAI).host
        extensions = frozenset() if self.is_openai else frozenset(_EXTENSIONS)
        explain_options(self.title, options, _COMMON_OPTIONS | extensions | {"previews", "edits"}, self._refusals())
        self._refused = _RefusedFields(_OPTIONAL_FIELDS, options)

    @property
    def edits(self) -> bool:
        """As the option says. By default only OpenAI's gpt-image models edit, since other servers do not declare it."""
        if self.options.edits is not None:
            return self.options.edits
        return self.is_openai and self.model.startswith("gpt-image")

    @property
    def takes_negative_prompts(self) -> bool:
        """Whether the options turn guidance on, as long as the server refuses none: it tells nothing of its models."""
        return not self.is_openai and _has_guidance(self.options) and "negative_prompt" not in self._refused.names

    def as_drawn(self, request: ImageRequest) -> ImageRequest:
        """See ``RemoteGenerator.as_drawn``."""
        return self._refused.without(request)

    @property
    def reproducible(self) -> bool:
        """False for OpenAI's own API, and once a server has refused a seed."""
        return not self.is_openai and "seed" not in self._refused.names

    @property
    def _streams(self) -> bool:
        """Whether the server streams partial images, of which only OpenAI's gpt-image models are known."""
        return self.is_openai and self.model.startswith("gpt-image")

    def _refusals(self) -> dict[str, str]:
        """Options that this API knows, and this server or model would not honour."""
        reasons: dict[str, str] = {}
        if self.options.previews and not self._streams:
            reasons["previews"] = "only OpenAI's gpt-image models stream previews; leave previews out"
        elif self.options.previews > _MAX_PARTIAL_IMAGES:
            reasons["previews"] = f"OpenAI streams at most {_MAX_PARTIAL_IMAGES} previews for an image"
        sizes = next((sizes for prefix, sizes in _SIZES.items() if self.model.startswith(prefix)), None)
        if self.is_openai and sizes and (size := self._size) and size not in sizes:
            side = "width" if self.options.width else "height"
            reasons[side] = f"{self.model} draws no images of {size}, only {', '.join(sizes)}"
        return reasons | _guidance_refusals(self.options)

    @property
    def requested_size(self) -> tuple[int | None, int | None]:
        """See ``RemoteGenerator.requested_size``; one side alone stands for a square."""
        width, height = self.options.width, self.options.height
        return width or height, height or width

    @property
    def _size(self) -> str | None:
        """The requested size in the API's form."""
        width, height = self.requested_size
        return f"{width}x{height}" if width else None

    async def acheck(self) -> str:
        """Request the list of models, which costs nothing, and look for the model in it."""
        body, kind = await self.fetch("GET", "/models", time.monotonic() + min(self.options.timeout, CHECK_TIMEOUT))
        answer = await asyncio.to_thread(json_body, body)
        if not isinstance(answer, (Mapping, list)):
            raise BackendError(
                f"{self.title}: {self._host} answers with {kind or 'nothing'} where a list of models should be: "
                "it has no API with OpenAI's protocol at this base_url, which often ends in /v1",
                retryable=False,
            )
        if mapping_in(answer).get("error"):
            raise BackendError(f"{self.title}: the server answers with an error{self.reason(body)}", retryable=False)
        listed = _list_of(answer, "data")
        models = [str(entry["id"]) for entry in listed if isinstance(entry, Mapping) and entry.get("id")]
        if models and self.model not in models:
            raise BackendError(
                f"{self.title}: the server has no model {self.model!r}, only {', '.join(models[:8])}", retryable=False
            )
        return f"{self.title}, {self._host} answers" + ("" if models else ", but does not list its models")

    async def make(
        self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]
    ) -> bytes | Image.Image:
        """See ``RemoteGenerator.make``. A field that the server refuses is left out, and from then on if that helps."""
        return await self._refused.ask(lambda without: self._ask(request, deadline, on_preview, without))

    async def _ask(
        self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None], without: Collection[str]
    ) -> bytes | Image.Image:
        fields = {name: value for name, value in self._fields(request).items() if name not in without}
        if request.edit is not None:
            files = {"image": ("image.png", await asyncio.to_thread(_png, request.edit.image), "image/png")}
            form = {name: str(value) for name, value in fields.items()}
            body, _ = await self.fetch("POST", "/images/edits", deadline, data=form, files=files)
            return await self.image_in(body, deadline)
        partial = min(self.options.previews, _MAX_PARTIAL_IMAGES)
        if partial and self._streams:
            return await self._stream(fields | {"stream": True, "partial_images": partial}, deadline, on_preview)
        body, _ = await self.fetch("POST", "/images/generations", deadline, json=fields)
        return await self.image_in(body, deadline)

    def _fields(self, request: ImageRequest) -> dict[str, Any]:
        options = self.options
        fields: dict[str, Any] = {"model": self.model, "prompt": edit_instruction(request), "n": 1}
        if self._size:
            fields["size"] = self._size
        if not self.is_openai:
            fields["seed"] = request.seed
            extensions = {field: getattr(options, option) for option, field in _EXTENSIONS.items()}
            extensions["negative_prompt"] = joint_negative_prompt(options.negative_prompt, request)
            fields |= {name: value for name, value in extensions.items() if value is not None}
        if not (self.is_openai and self.model.startswith("gpt-image")):  # those models always answer in base64
            fields["response_format"] = "b64_json"
        return fields

    async def _stream(
        self, fields: dict[str, Any], deadline: float, on_preview: Callable[[Step], None]
    ) -> bytes | Image.Image:
        """Read server-sent events: some partial images, then the complete one."""
        steps = fields["partial_images"] + 1
        async with self.exchange("POST", "/images/generations", deadline, json=fields) as response:
            if _EVENTS not in response.headers.get("content-type", ""):
                body = await self.body_of(response)
                return await self.image_in(body, deadline)
            with charged() if response.is_success else contextlib.nullcontext():
                if response.headers.get("content-encoding", "identity") != "identity":  # unpacked up to a limit
                    unpacked = await read_body(response)
                    response = httpx.Response(200, headers={"content-type": _EVENTS}, content=unpacked)
                response.encoding = "utf-8"  # as of all events, whatever codec a header names
                async for event in EventSource(response).aiter_sse():
                    if image := await asyncio.to_thread(self._image_of, event, steps, on_preview):
                        return image
        raise PassingError(f"{self.title}: the stream ended before the image arrived", may_cost=True)

    def _image_of(self, event: ServerSentEvent, steps: int, on_preview: Callable[[Step], None]) -> bytes | None:
        """The image in an event. A partial one is reported; one that cannot be read is left out."""
        content = json_body(event.data.encode())
        if not isinstance(content, Mapping):  # such as the final [DONE]
            return None
        kind = str(content.get("type") or event.event)
        if kind.endswith("error"):
            message = f"{self.title}: {one_line(error_message(event.data.encode()))}"
            if is_refusal(event.data.encode()):
                raise ContentRefusedError(message)
            raise PassingError(message, may_cost=True)
        encoded = content.get("b64_json")
        if not isinstance(encoded, str) or not encoded:
            return None
        if kind.endswith("completed"):
            return decode_base64(encoded, self.title)
        with contextlib.suppress(BackendError):
            preview, index = (
                decode_image(decode_base64(encoded, self.title), self.title),
                content.get("partial_image_index"),
            )
            on_preview(Step(0, index + 1 if isinstance(index, int) else 1, steps, preview))
        return None


class PlainImages(JsonImages):
    """``POST URL?prompt=...&seed=...``, answered with the image itself."""

    def __init__(self, url: str, *, name: str, options: GeneratorOptions) -> None:
        environment_key = os.environ.get("GEMS_IMAGE_API_KEY")
        key = options.api_key or (SecretStr(environment_key) if environment_key else None)
        super().__init__(name, url, options, key)
        supported = (_COMMON_OPTIONS | {"steps", "guidance_scale", "negative_prompt"}) - {"base_url"}
        explain_options(self.title, options, supported, _guidance_refusals(options))
        self._refused = _RefusedFields((), options)

    @property
    def takes_negative_prompts(self) -> bool:
        """Whether the options turn guidance on, until the server refuses one."""
        return _has_guidance(self.options) and "negative_prompt" not in self._refused.names

    def as_drawn(self, request: ImageRequest) -> ImageRequest:
        """See ``RemoteGenerator.as_drawn``."""
        return self._refused.without(request)

    async def acheck(self) -> str:
        """Check that a server answers at the address, with whatever status but that of a key it does not take."""
        async with self.exchange("HEAD", "", time.monotonic() + min(self.options.timeout, CHECK_TIMEOUT)) as response:
            status = response.status_code
            hint = advice_on(status, "")  # of a key or an account; other statuses may only say that it takes a POST
            if hint and status != 403:  # which some answer to every HEAD
                raise BackendError(f"{self.title}: {self._host} answers {status} to HEAD{hint}", retryable=False)
            return f"{self.title} answers ({status} to HEAD){hint}"

    async def make(
        self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]
    ) -> bytes | Image.Image:
        """See ``RemoteGenerator.make``. A negative prompt of ours that the server refuses is left out."""
        return await self._refused.ask(lambda without: self._ask(request, deadline, without))

    async def _ask(self, request: ImageRequest, deadline: float, without: Collection[str]) -> bytes | Image.Image:
        names = ("width", "height", "steps", "guidance_scale", "negative_prompt")
        options = {n: value for n in names if (value := getattr(self.options, n)) is not None}
        if negative_prompt := joint_negative_prompt(self.options.negative_prompt, request):
            options["negative_prompt"] = negative_prompt
        options = {name: value for name, value in options.items() if name not in without}
        parameters = {"prompt": request.prompt, "seed": request.seed, **options}
        body, kind = await self.fetch("POST", "", deadline, params=parameters)
        body = body.lstrip(b"\r\n")
        if is_image_file(body):
            return body
        answer = await asyncio.to_thread(read_answer, body)
        if answer is not None or body.strip() in (b"", b"null") or is_packed(body) or is_busy(error_message(body)):
            return await self.image_in(body, deadline)
        words = error_message(body)
        if not is_text(body) and (not kind or kind.startswith("image/") or kind == "application/octet-stream"):
            return body  # whatever it is, the decoder tells
        if not words:
            what = f"a page, such as one to log in ({kind})" if is_page(body) else kind
            with charged():
                raise BackendError(f"{self.title}: the server answers without an image: {what}", retryable=False)
        raise self.failure(words, body)


class _RefusedFields:
    """Fields that a server refuses, and that an image can be asked for without.

    Args:
        optional: Fields that may be left out.
        options: The user's options. Without a negative prompt of the user's own, it may be left out too.
    """

    def __init__(self, optional: Collection[str], options: GeneratorOptions) -> None:
        self._optional = {*optional} if options.negative_prompt else {*optional, "negative_prompt"}
        self.names: frozenset[str] = frozenset()
        """Fields that the server has refused, and has drawn without."""

    async def ask(self, draw: Callable[[Collection[str]], Awaitable[_T]]) -> _T:
        """Draw without the refused fields, which are an argument of ``draw``."""
        without = set(self.names)
        while True:
            try:
                result = await draw(without)
            except RejectedError as error:
                refused = refused_fields(error.reason, self._optional - without)
                # Nothing was drawn for that request; the next one is another that the budget must have room for.
                if not refused or not (ASKS.get()(False) and ASKS.get()(True)):
                    raise
                without |= refused
            else:
                self.names |= without
                return result

    def without(self, request: ImageRequest) -> ImageRequest:
        """A request as it was drawn."""
        return replace(request, negative_prompt="") if "negative_prompt" in self.names else request


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=None)  # the pixels: a profile can hold anything
    return buffer.getvalue()


def _list_of(answer: object, name: str) -> list[Any]:
    """The list with a name in an answer; empty if there is none. A single item is a list too, or the answer itself."""
    items = answer.get(name) if isinstance(answer, Mapping) else answer
    if isinstance(items, Mapping):
        return [items]
    return items if isinstance(items, list) else []


def _guidance_refusals(options: GeneratorOptions) -> dict[str, str]:
    """Why a negative prompt is refused: models use it only with guidance, and the options turn that off."""
    scales = (options.guidance_scale, options.true_cfg_scale)
    if options.negative_prompt is None or scales == (None, None) or _has_guidance(options):
        return {}
    return {
        "negative_prompt": "models use a negative_prompt only with guidance, which the options turn off; set a "
        "guidance_scale above 1, or leave the negative_prompt out"
    }


def _has_guidance(options: GeneratorOptions) -> bool:
    return any(scale is not None and scale > 1 for scale in (options.guidance_scale, options.true_cfg_scale))


def _from_environment(name: str) -> str:
    """A setting from the environment, for images or else for all of OpenAI's protocol."""
    return os.environ.get(f"GEMS_IMAGE_{name}") or os.environ.get(f"OPENAI_{name}") or ""
