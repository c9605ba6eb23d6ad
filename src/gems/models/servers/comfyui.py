"""Images from a ComfyUI server, by a workflow of the user in API format ("Save (API)" in ComfyUI's menu)."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from PIL import Image
from pydantic import SecretStr

from gems.errors import BackendError, ContentRefusedError, InputError
from gems.json_text import parse_json
from gems.models.generators import ImageRequest, Step, joint_negative_prompt
from gems.models.servers.base import CHECK_TIMEOUT, explain_options
from gems.models.servers.bodies import is_page
from gems.models.servers.comfyui_faults import (
    absent_files,
    entry_of,
    error_in,
    failure_of,
    has_saved,
    image_files,
    is_complete,
    is_refused,
    kinds_in,
    node_faults,
    other_files,
    other_images,
    run_in,
)
from gems.models.servers.error_texts import error_message, json_body, json_of_error
from gems.models.servers.http_client import NotThereYetError
from gems.models.servers.image_answers import JsonImages, read_answer
from gems.models.servers.retries import PassingError, charged
from gems.options import GeneratorOptions
from gems.secrets import one_line

__all__ = ["ComfyUIImages"]

_SUPPORTED_OPTIONS: Final = frozenset(
    {"api_key", "timeout", "concurrency", "workflow", "prompt_field", "negative_field", "seed_field"}
)
_POLL_SECONDS: Final = 0.25
"""Pause between two requests for the history, in seconds."""
_LONGEST_PAUSE: Final = 20.0
"""The longest such pause if the server asks for one, in seconds."""
_MOST_ABSENCES: Final = 4
"""How often in a row a workflow may be in neither the queue nor the history: behind a load balancer, another machine
than the one that runs it may answer."""


class ComfyUIImages(JsonImages):
    """``POST /prompt``, ``GET /history/ID`` until the workflow has run, and ``GET /view`` for its image.

    A gateway may also answer with the image at once, or put it, or its address, into the history.

    Raises:
        InputError: The workflow cannot be read, or does not have the node or input of a field.
    """

    def __init__(self, url: str, *, name: str, options: GeneratorOptions) -> None:
        environment_key = os.environ.get("GEMS_IMAGE_API_KEY")
        key = options.api_key or (SecretStr(environment_key) if environment_key else None)
        super().__init__(name, url, options, key)
        explain_options(self.title, options, _SUPPORTED_OPTIONS)
        self._workflow = _read_workflow(options.workflow)
        self._prompt = _input_of(self._workflow, options.prompt_field, "prompt_field", "6.text")
        self._seed = _input_of(self._workflow, options.seed_field, "seed_field", "3.seed")
        if self._prompt == self._seed:
            raise InputError(f"{self.title}: prompt_field and seed_field are the same input, {options.seed_field}")
        seed = self._workflow[self._seed[0]]["inputs"][self._seed[1]]
        if isinstance(seed, str | bool) or not isinstance(seed, int | list):  # a list is a link to another node
            raise InputError(f"{self.title}: seed_field {options.seed_field} holds {seed!r}, which is not a seed")
        self._negative = self._negative_input()

    @property
    def takes_negative_prompts(self) -> bool:
        """Whether the options say where a negative prompt goes."""
        return self._negative is not None

    def _negative_input(self) -> tuple[str, str] | None:
        """The node and the input of the negative prompt, if the options name them."""
        field = self.options.negative_field
        if field is None:
            return None
        node, name = _input_of(self._workflow, field, "negative_field", "7.text")
        if not isinstance(text := self._workflow[node]["inputs"][name], str) or (node, name) == self._prompt:
            raise InputError(f"{self.title}: negative_field {field} holds {text!r}, which is not a negative prompt")
        return node, name

    @property
    def fingerprint(self) -> str:
        """The server and the workflow, which decides what is drawn."""
        fields = [self._prompt, self._seed, *([self._negative] if self._negative else [])]
        workflow = json.dumps([self._workflow, *fields], sort_keys=True)
        return f"{super().fingerprint}+{hashlib.sha256(workflow.encode()).hexdigest()[:16]}"

    async def acheck(self) -> str:
        """Check that the server answers, and has the kinds of nodes and the files of models that the workflow uses."""
        deadline = time.monotonic() + min(self.options.timeout, CHECK_TIMEOUT)
        body, _ = await self.fetch("GET", "/object_info", deadline)
        answer = await asyncio.to_thread(self._json, body)
        kinds = {str(node.get("class_type")) for node in self._workflow.values()}
        available = kinds_in(answer, kinds)
        if not available and (words := error_in(answer)):
            raise BackendError(f"{self.title}: the server answers with an error: {words}", retryable=False)
        if not available:
            return f"{self.title} answers, but does not list its kinds of nodes"
        if missing_kinds := sorted(kinds - set(available)):
            raise BackendError(f"{self.title}: the server has no nodes {', '.join(missing_kinds)}", retryable=False)
        if missing_files := absent_files(self._workflow, available):
            raise BackendError(f"{self.title}: the server has no {'; no '.join(missing_files)}", retryable=False)
        return f"{self.title} answers, and has all {len(kinds)} kinds of nodes of the workflow"

    async def make(
        self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]
    ) -> bytes | Image.Image:
        """See ``RemoteGenerator.make``."""
        workflow = copy.deepcopy(self._workflow)
        for (node, field), value in ((self._prompt, request.prompt), (self._seed, request.seed)):
            workflow[node]["inputs"][field] = value
        if self._negative:
            node, field = self._negative
            text = joint_negative_prompt(workflow[node]["inputs"][field], request)
            workflow[node]["inputs"][field] = text
        body, _ = await self.fetch("POST", "/prompt", deadline, json={"prompt": workflow})
        answer = await asyncio.to_thread(read_answer, body)
        run, faults = run_in(answer), node_faults(_mapping(answer).get("node_errors"))
        if run is None:
            if faults or body.strip() in (b"null", b"{}"):
                reason = self.reason(body) or ": no reason given"
                raise BackendError(f"{self.title}: the workflow was refused{reason}", retryable=False)
            return await self.image_in(body, deadline)
        with charged():  # also if it failed: nodes have run before, of which some ask a provider
            return await self._saved_image(await self._wait(run, deadline), faults, deadline)

    async def _saved_image(self, entry: Mapping[str, Any], faults: list[str], deadline: float) -> bytes | Image.Image:
        """The image of a workflow that has run. The server draws what it can of one with faults, and names them."""
        files = image_files(entry)
        if not files and (images := other_images(entry)):
            return await self.image_in(json.dumps({"images": images}).encode(), deadline)
        if not files:
            reason = one_line("; ".join(faults)) or self._why_no_image(entry)
            raise BackendError(f"{self.title}: the workflow makes no image; {reason}", retryable=False)
        error: BackendError | None = None
        for file in files:
            try:
                return await self.fetch_image("/view", deadline, params=file)
            except BackendError as failure:
                error = error or failure
                if time.monotonic() > deadline:
                    break
        assert error is not None
        raise error

    def _why_no_image(self, entry: Mapping[str, Any]) -> str:
        if other_names := other_files(entry):
            return f"it saves {one_line(', '.join(other_names), 120)}, which is no image: use a SaveImage node"
        if any("saveimage" in str(node.get("class_type")).lower() for node in self._workflow.values()):
            return "the server lists no file of its SaveImage node, maybe since it has run the same before"
        return "it needs a SaveImage node"

    async def _wait(self, run: str, deadline: float) -> Mapping[str, Any]:
        """The history's entry of a run, once it is complete."""
        absences = 0
        while True:
            # An answer that is no history is one of a proxy: the workflow goes on, and must not be queued again.
            answer = await self.fetch_drawn(f"/history/{quote(run, safe='')}", deadline)
            history = b"" if isinstance(answer, NotThereYetError) else answer
            entry = entry_of(await asyncio.to_thread(json_body, history), run)
            if failure := failure_of(entry):
                if has_saved(entry):  # what failed came after the image, which is paid
                    return entry
                message = f"{self.title}: the workflow failed: {failure}"
                if is_refused(entry):  # of which nodes that ask a provider tell as of any fault
                    raise ContentRefusedError(message)
                raise BackendError(message, retryable=False)
            if is_complete(entry) or (absences and image_files(entry)):
                return entry
            if absences >= _MOST_ABSENCES and not entry:
                raise BackendError(f"{self.title}: the workflow was removed from the server's queue", retryable=False)
            pause, is_under_way, words = _POLL_SECONDS, False, ""
            if isinstance(answer, NotThereYetError):
                pause, is_under_way = max(pause, min(answer.after, _LONGEST_PAUSE)), answer.is_under_way
                words = f" ({str(answer).removeprefix(f'{self.title}: ')})"
            if time.monotonic() + pause > deadline:
                fault = f"the workflow was not done in time{words}; it may still be drawn, and charged"
                raise BackendError(f"{self.title}: {fault}", retryable=False)
            # A workflow leaves the queue and enters the history at once, so that the next history decides.
            absences = absences + 1 if not is_under_way and await self._has_left_queue(run, deadline) else 0
            await asyncio.sleep(pause)  # a stop waits for what is drawn, as it may be paid

    async def _has_left_queue(self, run: str, deadline: float) -> bool:
        """Whether the server says that a workflow neither runs nor waits. False if it does not say."""
        try:
            body, _ = await self.fetch("GET", "/queue", min(deadline, time.monotonic() + CHECK_TIMEOUT))
        except BackendError:
            return False
        return await asyncio.to_thread(_is_queue_without, body, run)

    def _json(self, body: bytes) -> object:
        content = json_body(body)
        if content is None and body.strip() != b"null":
            fault = (
                f"a page, such as one to log in: {self._host} needs another address" if is_page(body) else "not JSON"
            )
            raise PassingError(f"{self.title}: the server's answer is {fault}", may_cost=True)
        return content

    def reason(self, body: bytes) -> str:
        """See ``RemoteGenerator.reason``: with the inputs of the workflow that the server refuses."""
        faults = node_faults(_mapping(json_of_error(body)).get("node_errors"))
        return (
            f": {one_line('; '.join(filter(None, [error_message(body), *faults])))}" if faults else super().reason(body)
        )


def _read_workflow(path: str | None) -> dict[str, Any]:
    if path is None:
        raise InputError("comfyui needs a workflow: --generator-option workflow=FILE.json, in API format")
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the workflow {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"the workflow {path} is not JSON: {error}") from None
    nodes = content.values() if isinstance(content, dict) else ()
    if not nodes or not all(isinstance(n, dict) and isinstance(n.get("inputs"), dict) for n in nodes):
        raise InputError(f"{path} is not a workflow in API format; save it with 'Save (API)' in ComfyUI's menu")
    return dict(content)


def _input_of(workflow: Mapping[str, Any], field: str | None, option: str, example: str) -> tuple[str, str]:
    """The node and the input that an option names, as NODE.INPUT."""
    if field is None:
        raise InputError(f"comfyui needs --generator-option {option}=NODE.INPUT, such as {example}")
    node, _, name = field.partition(".")
    if node not in workflow:
        raise InputError(f"{option} {field}: the workflow has no node {node!r}, only {', '.join(workflow)}")
    inputs = workflow[node]["inputs"]
    if name not in inputs:
        raise InputError(f"{option} {field}: node {node} has no input {name!r}, only {', '.join(inputs)}")
    return node, name


def _is_queue_without(body: bytes, run: str) -> bool:
    queue = _mapping(json_body(body))
    is_queue = all(isinstance(queue.get(name), list) for name in ("queue_running", "queue_pending"))
    return is_queue and json.dumps(run)[1:-1] not in json.dumps(queue)


def _mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; an empty one in place of null and everything else."""
    return value if isinstance(value, Mapping) else {}
