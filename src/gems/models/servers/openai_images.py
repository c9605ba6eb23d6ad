"""Image servers: everything that speaks OpenAI's images API, and plain endpoints that answer with an image.

One adapter serves OpenAI, vLLM-Omni and SGLang Diffusion. One request is sent per image, never n > 1, so that image k
of a round can be made again alone.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from httpx_sse import EventSource
from pydantic import SecretStr
from pydantic_core import from_json

from gems.errors import BackendError, ContentRefusedError
from gems.models.generators import ImageRequest, Step, edit_instruction
from gems.models.servers.base import (
    MAX_BYTES,
    PassingError,
    RemoteGenerator,
    decode_image,
    error_message,
    read_body,
    refuse_options,
)
from gems.options import GeneratorOptions

__all__ = ["OpenAIImages", "PlainImages"]

_OPENAI: Final = "https://api.openai.com/v1"
_COMMON: Final = frozenset({"base_url", "api_key", "timeout", "concurrency", "width", "height"})
_EXTENSIONS: Final = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "negative_prompt": "negative_prompt",
}
"""Our options, and what vLLM-Omni and SGLang Diffusion call them. OpenAI's own API has none of them."""

_MAX_PARTIAL_IMAGES: Final = 3
"""Most previews of an image that OpenAI streams."""


class OpenAIImages(RemoteGenerator):
    """``POST /v1/images/generations`` and, for models that can, ``/v1/images/edits``.

    The seed is sent to every server but OpenAI's own, which has none: there, a run cannot be replayed. A server that
    refuses the seed is asked without it from then on.

    Args:
        model: The model's name on the server.
        name: What to call this backend in records.
        options: How it is run. Base URL and key may come from GEMS_IMAGE_BASE_URL and GEMS_IMAGE_API_KEY, else from
            OPENAI_BASE_URL and OPENAI_API_KEY.
    """

    def __init__(self, model: str, *, name: str, options: GeneratorOptions) -> None:
        base_url = options.base_url or _setting("BASE_URL") or _OPENAI
        key = options.api_key or (SecretStr(found) if (found := _setting("API_KEY")) else None)
        super().__init__(name, base_url, options, key)
        self.model = model
        self.is_openai = self.url.host == httpx.URL(_OPENAI).host
        extensions = frozenset() if self.is_openai else frozenset(_EXTENSIONS)
        refuse_options(name, options, _COMMON | extensions | {"previews", "edits"})
        self._left_out: set[str] = set()

    @property
    def edits(self) -> bool:
        """As the option says; left open, OpenAI's gpt-image models can, and of others nobody knows."""
        if self.options.edits is not None:
            return self.options.edits
        return self.is_openai and self.model.startswith("gpt-image")

    def check(self) -> str:
        """Ask for the list of models, which costs nothing."""
        body, _ = self.fetch("GET", "/models", time.monotonic() + min(self.options.timeout, 15.0))
        try:
            known = [str(entry["id"]) for entry in json.loads(body)["data"]]
        except (ValueError, KeyError, TypeError):
            known = []
        if known and self.model not in known:
            raise BackendError(
                f"{self.name}: the server has no model {self.model!r}, only {', '.join(known[:8])}", retryable=False
            )
        return f"{self.name}, {self.url} answers" + ("" if known else ", but does not list its models")

    def make(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        """See ``RemoteGenerator.make``."""
        try:
            return self._ask(request, deadline, on_preview)
        except BackendError as error:
            refused = next((field for field in ("seed", "response_format") if f"{field}" in str(error)), None)
            if error.retryable or isinstance(error, ContentRefusedError) or not refused or refused in self._left_out:
                raise
            self._left_out.add(refused)  # not every server knows it; it is left out from now on
            return self._ask(request, deadline, on_preview)

    def _ask(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        fields = self._fields(request)
        if request.edit is not None:
            buffer = io.BytesIO()
            request.edit.image.save(buffer, "PNG")
            files = {"image": ("image.png", buffer.getvalue(), "image/png")}
            form = {name: str(value) for name, value in fields.items()}
            body, _ = self.fetch("POST", "/images/edits", deadline, data=form, files=files)
            return self._image(body, deadline)
        partial = min(self.options.previews, _MAX_PARTIAL_IMAGES)
        if partial and self.is_openai and self.model.startswith("gpt-image"):
            return self._stream(fields | {"stream": True, "partial_images": partial}, deadline, on_preview)
        body, _ = self.fetch("POST", "/images/generations", deadline, json=fields)
        return self._image(body, deadline)

    def _fields(self, request: ImageRequest) -> dict[str, Any]:
        options = self.options
        fields: dict[str, Any] = {"model": self.model, "prompt": edit_instruction(request), "n": 1}
        if options.width or options.height:
            fields["size"] = f"{options.width or options.height}x{options.height or options.width}"
        if not self.is_openai:
            fields["seed"] = request.seed
            given = {theirs: getattr(options, ours) for ours, theirs in _EXTENSIONS.items()}
            fields |= {name: value for name, value in given.items() if value is not None}
        if not (self.is_openai and self.model.startswith("gpt-image")):  # which sends base64 always, and no choice
            fields["response_format"] = "b64_json"
        return {name: value for name, value in fields.items() if name not in self._left_out}

    def _image(self, body: bytes, deadline: float) -> bytes:
        try:
            answer = from_json(body)
        except ValueError:
            raise PassingError(f"{self.name}: the server's answer is no JSON") from None
        data = answer.get("data") if isinstance(answer, Mapping) else None
        first = data[0] if isinstance(data, list) and data and isinstance(data[0], Mapping) else {}
        if first.get("b64_json"):
            return self._decode(first["b64_json"])
        if first.get("url"):
            return self._download(str(first["url"]), deadline)
        said = self.scrub(error_message(body)) if isinstance(answer, Mapping) and "error" in answer else "no image"
        raise BackendError(f"{self.name}: the server answers without an image: {said}", retryable=False)

    def _decode(self, given: object) -> bytes:
        text, mark = str(given), "base64,"  # which ends a data URL, and is no base64 itself
        start = text.find(mark, 0, 200)
        try:
            return base64.b64decode(text[start + len(mark) :] if start >= 0 else text, validate=True)
        except (binascii.Error, ValueError):
            raise PassingError(f"{self.name}: the server sent torn base64") from None

    def _download(self, address: str, deadline: float) -> bytes:
        """An image by its address, from the configured server only: others were not asked for anything."""
        url = self.url.join(address)
        if (url.scheme, url.host, url.port) != (self.url.scheme, self.url.host, self.url.port):
            raise BackendError(
                f"{self.name}: the server sends an image from another host ({url.host}), which is not fetched; "
                "let it answer in base64",
                retryable=False,
            )
        return self.fetch("GET", str(url), deadline)[0]

    def _stream(self, fields: dict[str, Any], deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        """Server-sent events: some partial images, then the whole one."""
        steps, size = fields["partial_images"] + 1, 0
        with self.exchange("POST", "/images/generations", deadline, json=fields) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                body = read_body(response, deadline)
                self.check_status(response, body)
                return self._image(body, deadline)
            for event in EventSource(response).iter_sse():
                size += len(event.data)
                if size > MAX_BYTES:
                    raise BackendError(f"{self.name} sends more than {MAX_BYTES >> 20} MB", retryable=False)
                try:
                    told = json.loads(event.data)
                except ValueError:
                    continue  # such as the closing [DONE]
                kind = str(told.get("type", event.event))
                if kind.endswith("error"):
                    raise PassingError(f"{self.name}: {self.scrub(error_message(event.data.encode()))}")
                if "b64_json" not in told:
                    continue
                data = self._decode(told["b64_json"])
                if kind.endswith("completed"):
                    return data
                preview = decode_image(data, self.name)
                on_preview(Step(0, int(told.get("partial_image_index", 0)) + 1, steps, preview))
        raise PassingError(f"{self.name}: the stream ended before the image was there")


class PlainImages(RemoteGenerator):
    """``POST URL?prompt=...&seed=...``, answered with the image itself."""

    def __init__(self, url: str, *, name: str, options: GeneratorOptions) -> None:
        key = options.api_key or (SecretStr(found) if (found := os.environ.get("GEMS_IMAGE_API_KEY")) else None)
        super().__init__(name, url, options, key)
        refuse_options(name, options, (_COMMON | {"steps", "guidance_scale", "negative_prompt"}) - {"base_url"})

    def check(self) -> str:
        """See that somebody answers at that address; what, does not matter."""
        with self.exchange("HEAD", "", time.monotonic() + min(self.options.timeout, 15.0)) as response:
            return f"{self.name} answers ({response.status_code} to HEAD)"

    def make(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        """See ``RemoteGenerator.make``."""
        names = ("width", "height", "steps", "guidance_scale", "negative_prompt")
        given = {n: value for n in names if (value := getattr(self.options, n)) is not None}
        asked = {**dict(self.url.params), "prompt": request.prompt, "seed": request.seed, **given}
        body, kind = self.fetch("POST", "", deadline, params=asked)
        if kind and not kind.startswith("image/") and kind != "application/octet-stream":
            said = self.scrub(error_message(body)) or kind
            raise BackendError(f"{self.name}: the server answers without an image: {said}", retryable=False)
        return body


def _setting(name: str) -> str:
    return os.environ.get(f"GEMS_IMAGE_{name}") or os.environ.get(f"OPENAI_{name}") or ""
