"""Images from a ComfyUI server, by a workflow of the user's own in API format ("Save (API)" in ComfyUI's menu)."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from gems.errors import BackendError, InputError
from gems.models.generators import ImageRequest, Step
from gems.models.servers.base import PassingError, RemoteGenerator, refuse_options
from gems.options import GeneratorOptions
from gems.secrets import one_line

__all__ = ["ComfyUIImages"]

_KNOWN: Final = frozenset({"api_key", "timeout", "concurrency", "workflow", "prompt_field", "seed_field"})
_POLL: Final = 0.25
"""Seconds between two looks at the history; a queue is looked at four times a second."""


class ComfyUIImages(RemoteGenerator):
    """``POST /prompt``, ``GET /history/ID`` until it is done, ``GET /view``: the first image that is saved.

    Raises:
        InputError: The workflow cannot be read, or has no such node or input.
    """

    def __init__(self, url: str, *, name: str, options: GeneratorOptions) -> None:
        key = options.api_key or (SecretStr(found) if (found := os.environ.get("GEMS_IMAGE_API_KEY")) else None)
        super().__init__(name, url, options, key)
        refuse_options(name, options, _KNOWN)
        self._workflow = _read(options.workflow)
        self._prompt = _place(self._workflow, options.prompt_field, "prompt_field", "6.text")
        self._seed = _place(self._workflow, options.seed_field, "seed_field", "3.seed")

    def check(self) -> str:
        """See that the server is there, and knows the kinds of nodes that the workflow is made of."""
        deadline = time.monotonic() + min(self.options.timeout, 15.0)
        known = self._json(*self.fetch("GET", "/object_info", deadline))
        kinds = {str(node.get("class_type")) for node in self._workflow.values()}
        if missing := sorted(kinds - set(known)):
            raise BackendError(f"{self.name}: the server has no nodes {', '.join(missing)}", retryable=False)
        return f"{self.name} answers, and knows all {len(kinds)} kinds of nodes of the workflow"

    def make(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        """See ``RemoteGenerator.make``."""
        workflow = copy.deepcopy(self._workflow)
        for (node, field), value in ((self._prompt, request.prompt), (self._seed, request.seed)):
            workflow[node]["inputs"][field] = value
        queued = self._json(*self.fetch("POST", "/prompt", deadline, json={"prompt": workflow}))
        if not queued.get("prompt_id"):
            raise BackendError(f"{self.name}: the workflow was refused: {_faults(queued)}", retryable=False)
        where = self._first_image(self._finished(str(queued["prompt_id"]), deadline))
        body, _ = self.fetch("GET", "/view", deadline, params=where)
        return body

    def _finished(self, run: str, deadline: float) -> Mapping[str, Any]:
        """The run's entry in the history, once it is there."""
        while True:
            entry = self._json(*self.fetch("GET", f"/history/{run}", deadline)).get(run)
            status = entry.get("status", {}) if isinstance(entry, Mapping) else {}
            if status.get("status_str") == "error":
                raise BackendError(f"{self.name}: the workflow failed: {_failure(status)}", retryable=False)
            if isinstance(entry, Mapping) and (entry.get("outputs") or status.get("completed")):
                return entry
            if time.monotonic() + _POLL > deadline:
                raise PassingError(f"{self.name}: the workflow was not done in time")
            time.sleep(_POLL)

    def _first_image(self, entry: Mapping[str, Any]) -> dict[str, str]:
        """Where the first saved image lies; previews ("temp") only if nothing was saved."""
        images = [i for output in entry.get("outputs", {}).values() for i in output.get("images", ())]
        saved = [i for i in images if i.get("type", "output") == "output"] or images
        if not saved:
            raise BackendError(f"{self.name}: the workflow makes no image; it needs a SaveImage node", retryable=False)
        return {key: str(saved[0].get(key, "")) for key in ("filename", "subfolder", "type")}

    def _json(self, body: bytes, _: str) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except ValueError:
            raise PassingError(f"{self.name}: the server's answer is no JSON") from None
        return found if isinstance(found, dict) else {}


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        raise InputError("comfyui needs a workflow: --generator-option workflow=FILE.json, in API format")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the workflow {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"the workflow {path} is no JSON: {error}") from None
    nodes = found.values() if isinstance(found, dict) else ()
    if not nodes or not all(isinstance(n, dict) and isinstance(n.get("inputs"), dict) for n in nodes):
        raise InputError(f"{path} is no workflow in API format; save it with 'Save (API)' in ComfyUI's menu")
    return dict(found)


def _place(workflow: Mapping[str, Any], field: str | None, option: str, example: str) -> tuple[str, str]:
    """Node and input of NODE.INPUT."""
    if field is None:
        raise InputError(f"comfyui needs --generator-option {option}=NODE.INPUT, such as {example}")
    node, _, name = field.partition(".")
    if node not in workflow:
        raise InputError(f"{option} {field}: the workflow has no node {node!r}, only {', '.join(workflow)}")
    inputs = workflow[node]["inputs"]
    if name not in inputs:
        raise InputError(f"{option} {field}: node {node} has no input {name!r}, only {', '.join(inputs)}")
    return node, name


def _faults(queued: Mapping[str, Any]) -> str:
    error = queued.get("error")
    said = error.get("message") if isinstance(error, Mapping) else error
    return one_line(said or "no reason given")


def _failure(status: Mapping[str, Any]) -> str:
    for kind, told in status.get("messages", ()):
        if kind == "execution_error" and isinstance(told, Mapping):
            where = f"node {told.get('node_id')} ({told.get('node_type')})"
            return f"{where}: {' '.join(str(told.get('exception_message')).split())[:300]}"
    return "no reason given"
