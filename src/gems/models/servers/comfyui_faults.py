"""How a ComfyUI server says what runs, is wrong, has failed or is done, and what it has saved, in any shape."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeGuard

from gems.models.lenient import field_name
from gems.models.servers.error_texts import says_refusal, words_of
from gems.secrets import one_line

__all__ = [
    "absent_files",
    "entry_of",
    "error_in",
    "failure_of",
    "has_saved",
    "image_files",
    "is_complete",
    "is_refused",
    "kinds_in",
    "node_faults",
    "other_files",
    "other_images",
    "run_in",
]

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
_MODEL_FILE: Final = re.compile(r"\.(?:safetensors|sft|ckpt|pth?|bin|gguf|onnx)$", re.IGNORECASE)
"""Matches the name of a model's file. What else is in no list may be there: a file that was uploaded a moment ago."""
_MOST_NEAR_NAMES: Final = 3
_ABOUT_NODES: Final = frozenset(
    {"node_id", "node_type", "class_type", "dependent_outputs", "traceback", "current_inputs", "current_outputs"}
)
"""What stands beside an error and says nothing about it."""
_MAX_WORDS: Final = 160
_MOST_READ: Final = 4000
_MAX_LABEL: Final = 60
"""The most characters of a node's name, which stands before the reason and must not push it out of the line."""


_FRAMES: Final = ("history", "data", "result", "results", "response", "output", "job")
"""The names under which gateways put what the server itself has answered."""


def run_in(answer: object) -> str | None:
    """The name of the run that a server has queued; None if it has queued none."""
    for fields in _framed(answer):
        names = {field_name(name): value for name, value in fields.items()}
        run = names.get("prompt_id", names.get("promptid"))
        if isinstance(run, (str, int)) and str(run):
            return str(run)
    return None


def entry_of(history: object, run: str) -> Mapping[str, Any]:
    """A run's entry in a history; empty if it has none."""
    for fields in _framed(history):
        if entry := _mapping(fields.get(run)):
            return entry
        if "outputs" in fields and _run_of_entry(fields) in (None, run):
            return fields
    return {}


def _run_of_entry(entry: Mapping[str, Any]) -> str | None:
    """The run that an entry names, by itself or in the form in which it was queued."""
    prompt = entry.get("prompt")
    in_queue = prompt[1] if isinstance(prompt, list) and len(prompt) > 1 else None
    run = entry.get("prompt_id") or in_queue
    return str(run) if isinstance(run, (str, int)) else None


def kinds_in(answer: object, used_kinds: Iterable[str]) -> Mapping[str, Any]:
    """The kinds of nodes that a server lists; empty if it lists none.

    Args:
        answer: What it answers.
        used_kinds: The kinds that the workflow uses.
    """
    listings = (
        fields for fields in _framed(answer) if any(kind in fields for kind in used_kinds) or _is_listing(fields)
    )
    return next(listings, {})


def _is_listing(fields: Mapping[str, Any]) -> bool:
    return any("input" in _mapping(value) for value in fields.values())


def error_in(answer: object) -> str:
    """What an answer says in place of what was asked for; empty if it says nothing, or only that all is well."""
    words = filter(None, map(words_of, _framed(answer)))
    return one_line(next((text for text in words if text.casefold() not in (*_SUCCESS_WORDS, "ok")), ""))


def absent_files(workflow: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """The files of models that a workflow names and a server does not have, each with the nearest names that it has."""
    faults = []
    for number, node in workflow.items():
        for name, value in node["inputs"].items():
            if not isinstance(value, str) or not _MODEL_FILE.search(value):
                continue
            choices = _choices(_mapping(kinds.get(str(node.get("class_type")))), name)
            if choices is not None and value not in choices:
                near = ", ".join(difflib.get_close_matches(value, choices, _MOST_NEAR_NAMES, 0.0)) or "none"
                faults.append(one_line(f"{value} ({number}.{name}), but {near}", _MOST_READ))
    return faults


def _choices(kind: Mapping[str, Any], name: str) -> list[str] | None:
    """The values that an input takes; None if the server does not list them as texts."""
    groups = [_mapping(_mapping(kind.get("input")).get(group)) for group in ("required", "optional")]
    form = next((group[name] for group in groups if name in group), None)
    if not isinstance(form, list) or not form:
        return None
    choices = form[0]
    if choices == "COMBO":  # of newer nodes
        choices = _mapping(form[-1]).get("options")
    return choices if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices) else None


def _framed(answer: object, depth: int = 3) -> Iterator[Mapping[str, Any]]:
    """An answer, and what is in the frames and lists around the server's own answer."""
    if isinstance(answer, list):
        for item in answer if depth else ():
            yield from _framed(item, depth - 1)
    elif isinstance(answer, Mapping):
        yield answer
        for name in _FRAMES if depth else ():
            yield from _framed(answer.get(name), depth - 1)


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
    word = _word(_mapping(entry).get("status"))
    was_refused = says_refusal(word)  # in a status of its own, such as "Content Moderated"
    if not (was_stopped or was_refused or _FAILURE_WORDS.intersection(kinds)):
        return ""
    details = _details(entry)
    if was_stopped and not _words(details):
        return "it was interrupted on the server"
    words = _words(details) or (word if was_refused else "no reason given")
    return f"{_label(details.get('node_id'), details.get('node_type'))}{words}"


def is_refused(entry: object) -> bool:
    """Whether a workflow failed since a provider does not draw such words."""
    details = {name: value for name, value in _details(entry).items() if name not in _ABOUT_NODES}
    words = json.dumps(details, ensure_ascii=False, default=str)  # with its code, which no error shows beside words
    return says_refusal(f"{_word(_mapping(entry).get('status'))} {words[:_MOST_READ]}")


def _details(entry: object) -> Mapping[str, Any]:
    return _kinds(entry).get("execution_error") or _own_words(entry)


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
    files = sorted(_items_of(entry.get("outputs")), key=lambda item: item[0] != "images")
    images = [file for _, file in files if _is_file(file) and not _OTHER_FILE.search(str(file["filename"]))]
    by_kind = {kind: [file for file in images if _kind_of_file(file) == kind] for kind in ("output", "temp")}
    return [
        {
            **{key: str(file[key]) for key in ("filename", "subfolder") if file.get(key)},
            **({"type": _kind_of_file(file)} if file.get("type") else {}),
        }
        for file in by_kind["output"] or by_kind["temp"]
    ]


def other_files(entry: Mapping[str, Any]) -> list[str]:
    """The names of a workflow's files that are no images, such as videos."""
    files = (file for _, file in _items_of(entry.get("outputs")) if _is_file(file))
    return [name for file in files if _OTHER_FILE.search(name := str(file["filename"]))]


def other_images(entry: Mapping[str, Any]) -> list[Any]:
    """The images in a workflow's entry that are no files of the server's folders, such as addresses and base64."""
    items = _items_of(entry.get("outputs"))
    return [item for name, item in items if name == "images" and item and not _is_file(item)]


def _items_of(value: object, name: str = "", depth: int = 6) -> Iterator[tuple[str, Any]]:
    """The files in a part of a workflow's outputs, and other items of its lists, with the names of the lists."""
    if isinstance(value, Mapping) and not _is_file(value) and depth and name != "images":
        for key, inner in value.items():
            yield from _items_of(inner, str(key), depth - 1)
    elif isinstance(value, list) and depth:
        for inner in value:
            yield from _items_of(inner, name, depth - 1)
    else:
        yield name, value


def _is_file(item: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(item, Mapping) and bool(item.get("filename"))


def has_saved(entry: Mapping[str, Any]) -> bool:
    """Whether a workflow has saved an image, and not only shown one on its way."""
    return any(_kind_of_file(file) == "output" for file in image_files(entry))


def _kind_of_file(file: Mapping[str, Any]) -> str:
    """The folder that a file is in: "output", "temp", or "input" for what the workflow was given."""
    return str(file.get("type") or "output").lower()


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
    names = [f"node {one_line(str(number), _MAX_LABEL)}"] if number is not None else ["a node"] if kind else []
    return "".join([*names, f" ({one_line(str(kind), _MAX_LABEL)})" if kind else "", ": " if names else ""])


def _words(error: object) -> str:
    if isinstance(error, Mapping):
        error = {name: content for name, content in error.items() if str(name).lower() not in _ABOUT_NODES}
    return one_line(words_of(error))


def _mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; an empty one in place of null and everything else."""
    return value if isinstance(value, Mapping) else {}
