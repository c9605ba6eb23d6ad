"""How a ComfyUI server says that a workflow is wrong, has failed or is done, and what it has saved, in any shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gems.models.servers.error_texts import words_of
from gems.secrets import one_line

__all__ = ["failure_of", "has_saved", "image_files", "is_complete", "node_faults"]

_FAILURE_WORDS: Final = frozenset({"error", "failed", "failure", "execution_error"})
_STOP_WORDS: Final = frozenset(
    {"interrupted", "execution_interrupted", "cancelled", "canceled", "aborted", "execution_cancelled"}
)
_SUCCESS_WORDS: Final = frozenset(
    {"success", "succeeded", "completed", "complete", "done", "finished", "execution_success"}
)
_WAIT_WORDS: Final = frozenset({"running", "executing", "processing", "in_progress", "pending", "queued", "started"})
_OTHER_FILE: Final = re.compile(
    r"\.(?:mp4|m4v|webm|mkv|mov|avi|gif|flac|mp3|wav|ogg|opus|glb|gltf|obj|ply|stl|txt|json|csv|latent|safetensors|pt)$",
    re.IGNORECASE,
)
"""Matches the name of a file that is no image that can be read."""
_ABOUT_NODES: Final = frozenset(
    {"node_id", "node_type", "class_type", "dependent_outputs", "traceback", "current_inputs", "current_outputs"}
)
"""What stands beside an error and says nothing about it."""
_MAX_WORDS: Final = 160


def node_faults(node_errors: object) -> list[str]:
    """What a server finds wrong with the nodes of a workflow, one line for each fault."""
    if isinstance(node_errors, Mapping):
        nodes: Iterable[tuple[object, Any]] = node_errors.items()
    else:
        items = node_errors if isinstance(node_errors, list) else [node_errors]
        nodes = [(_mapping(item).get("node_id"), item) for item in items]
    faults = []
    for number, node in nodes:
        content = _mapping(node).get("errors") or node
        for error in content if isinstance(content, list) else [content]:
            if words := _words(error):
                label = _label(number, _mapping(node).get("class_type") or _mapping(node).get("node_type"))
                faults.append(f"{label}{words[:_MAX_WORDS]}")
    return faults


def failure_of(entry: object) -> str:
    """Why a workflow failed, by its entry in the history; empty if it did not."""
    kinds = _kinds(entry)
    was_stopped = bool(_STOP_WORDS.intersection(kinds))
    if not was_stopped and not _FAILURE_WORDS.intersection(kinds):
        return ""
    details = kinds.get("execution_error") or _own_words(entry)
    if was_stopped and not _words(details):
        return "it was interrupted on the server"
    return f"{_label(details.get('node_id'), details.get('node_type'))}{_words(details) or 'no reason given'}"


def is_complete(entry: Mapping[str, Any]) -> bool:
    """Whether a workflow that did not fail has run. ComfyUI itself lists only those that have."""
    status = entry.get("status")
    word, completed = _word(status), _mapping(status).get("completed")
    if str(completed).lower() == "true" or _SUCCESS_WORDS.intersection(_kinds(entry)):
        return True
    if entry.get("outputs"):  # maybe of the first nodes only
        return str(completed).lower() != "false" and word not in _WAIT_WORDS
    return bool(entry) and not word and completed is None


def image_files(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """The image files of a workflow as parameters of ``/view``: the saved ones, or the previews if there are none."""
    outputs = [_mapping(output) for output in _values(entry.get("outputs"))]
    lists = [output.get("images") for output in outputs]
    lists += [files for output in outputs for name, files in output.items() if name != "images"]
    files = [_mapping(file) for part in lists for file in (part if isinstance(part, list) else [part])]
    images = [file for file in files if file.get("filename") and not _OTHER_FILE.search(str(file["filename"]))]
    by_kind = {kind: [file for file in images if _kind_of_file(file) == kind] for kind in ("output", "temp")}
    return [
        {key: str(file[key]) for key in ("filename", "subfolder", "type") if file.get(key)}
        for file in by_kind["output"] or by_kind["temp"]
    ]


def has_saved(entry: Mapping[str, Any]) -> bool:
    """Whether a workflow has saved an image, and not only shown one on its way."""
    return any(_kind_of_file(file) == "output" for file in image_files(entry))


def _kind_of_file(file: Mapping[str, Any]) -> str:
    """The folder that a file is in: "output", "temp", or "input" for what the workflow was given."""
    return str(file.get("type") or "output").lower()


def _values(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()


def _own_words(entry: object) -> Mapping[str, Any]:
    """What the entry or its status says is wrong, where no message does."""
    fields = {**_mapping(_mapping(entry).get("status")), **_mapping(entry)}
    return {name: fields[name] for name in ("error", "errors", "exception_message", "message") if name in fields}


def _kinds(entry: object) -> dict[str, Mapping[str, Any]]:
    """The word for a workflow's status, and the kinds of the messages about it, with their details."""
    status = _mapping(entry).get("status")
    messages = _mapping(status).get("messages")
    kinds: dict[str, Mapping[str, Any]] = {_word(status): {}} if _word(status) else {}
    for message in messages if isinstance(messages, list) else [messages]:
        parts = message if isinstance(message, list) else [_kind_of(message), message]
        if parts and isinstance(parts[0], str):
            details = _mapping(parts[1] if len(parts) > 1 else None)
            kinds[parts[0].lower()] = _mapping(details.get("data")) or details
    return kinds


def _kind_of(message: object) -> object:
    """The kind of a message that is an object or a text."""
    names = ("event", "type", "kind", "name")
    return message if isinstance(message, str) else next(filter(None, map(_mapping(message).get, names)), None)


def _word(status: object) -> str:
    text = status if isinstance(status, str) else _mapping(status).get("status_str")
    return text.strip().lower() if isinstance(text, str) else ""


def _label(number: object, kind: object) -> str:
    """Names a node, as far as it is known, before what is wrong with it."""
    names = [f"node {number}"] if number is not None else ["a node"] if kind else []
    return "".join([*names, f" ({kind})" if kind else "", ": " if names else ""])


def _words(error: object) -> str:
    if isinstance(error, Mapping):
        error = {name: content for name, content in error.items() if str(name).lower() not in _ABOUT_NODES}
    return one_line(words_of(error))


def _mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; an empty one in place of null and everything else."""
    return value if isinstance(value, Mapping) else {}
