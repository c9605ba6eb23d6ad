"""What only the operator decides: the person who runs this program, by command line, environment or own Python code.

A setting that names an address, a key, a folder, a store or code decides whom this machine calls, with whose money,
what it reads and what it runs. Settings also arrive as data: in the context that a parent graph or a server passes on,
in a request, a record, a batch's folder, a checkpoint or a memory. Data must not decide such things. They are therefore
marked as ``OperatorOnly``. The command line, ``build_graph(settings=...)`` and ``GemsContext.as_operator`` attach an
``Authority`` that lists the values that the operator gave. An authority is never written down and never read from data,
the marked values are never written down either, and whatever uses them checks the authority first.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, SecretStr

from gems.default_models import CHAT_MODEL, GENERATOR
from gems.errors import GemsError, InputError
from gems.secrets import one_line

__all__ = [
    "CODE",
    "MODEL",
    "NO_AUTHORITY",
    "OPERATOR",
    "Authority",
    "OperatorOnly",
    "OperatorValue",
    "call_factory",
    "is_code",
    "is_downloaded",
    "is_file",
    "model_value",
    "names_more_than_a_model",
    "operator_marks",
    "operator_values",
    "option_of",
    "without_login",
]

CODE: Final = "GEMS_CODE"
"""The environment variable that lists, with commas, the ``python:`` names that may run wherever they are named."""

MODEL: Final = "model"
"""The kind of all values that name a model: a name that is allowed for one role is allowed for each."""

_PREFIX: Final = "python:"
_ADDRESSES: Final = frozenset({"http", "https", "comfyui"})
"""Kinds of model names that hold a server's address."""
_WEIGHTS: Final = {"diffusers": "model_index.json", "transformers": "config.json"}
"""Kinds of model names that hold a repository or a folder of weights, and the file that each of them begins with."""
_LOADERS: Final = frozenset({"huggingface", "huggingface_pipeline"})
"""LangChain's providers that run weights of any file format in this process."""


# --- which settings are the operator's ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OperatorOnly:
    """Marks a setting that only the operator gives.

    Attributes:
        option: How the command line says it.
        kind: Values of the same kind allow each other; the setting's own path if it is empty.
        applies: Whether a value needs the operator's authority.
    """

    option: str
    kind: str = ""
    applies: Callable[[Any], bool] = bool


class OperatorValue(NamedTuple):
    """A value that needs the operator's authority: where it stands, its kind and text, and the option to give it."""

    path: str
    kind: str
    text: str
    option: str


def operator_marks(settings: type[BaseModel]) -> dict[str, OperatorOnly]:
    """The marks of the settings that only the operator gives, by name."""
    fields = settings.model_fields.items()
    return {name: mark for name, info in fields for mark in info.metadata if isinstance(mark, OperatorOnly)}


def operator_values(settings: BaseModel, prefix: str = "") -> Iterator[OperatorValue]:
    """The values in these settings, and in groups of settings within them, that need the operator's authority."""
    marks = operator_marks(type(settings))
    for name in type(settings).model_fields:
        value, path = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from operator_values(value, f"{path}.")
        elif name in marks and marks[name].applies(value):
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            yield OperatorValue(path, marks[name].kind or path, text, option_of(path, marks[name]))


def option_of(path: str, mark: OperatorOnly) -> str:
    """How the command line gives the setting at a path; one of a single role has the role in front of its name."""
    group, _, rest = path.partition(".")
    if group != "role_options":
        return mark.option
    flag, _, pair = mark.option.partition(" ")
    return f"{flag} {rest.partition('.')[0]}.{pair}"


def model_value(name: str) -> OperatorValue:
    """A model's name, as a value to be checked."""
    return OperatorValue("model", MODEL, name, "--generator or --mllm")


def is_code(name: str) -> bool:
    """Whether a model's name runs code."""
    return name.startswith(_PREFIX)


def names_more_than_a_model(name: str | None) -> bool:
    """Whether a model's name holds code, an address, a folder of this machine, or a repository to download from."""
    if not name:
        return False
    kind, target = _kind_and_target(name)
    # Some providers, such as litellm, take an address as a part of a model's name.
    is_address = kind in _ADDRESSES or "://" in target
    return is_code(name) or is_address or kind in _LOADERS or kind in _WEIGHTS


def is_downloaded(name: str) -> bool:
    """Whether a model's name holds a repository that this machine has a copy of: using that contacts nobody."""
    kind, _, target = name.partition(":")  # as they are used: a folder's name may begin or end with a space
    if kind not in _WEIGHTS or is_file(target):
        return False
    from huggingface_hub import try_to_load_from_cache

    path, _, revision = target.rpartition("@")
    try:
        copy = try_to_load_from_cache(path or target, _WEIGHTS[kind], revision=revision if path else None)
    except (OSError, ValueError):  # no name of a repository
        return False
    return isinstance(copy, str)


def _kind_and_target(name: str) -> tuple[str, str]:
    """The two parts of a model's name. LangChain, too, reads its providers in either case, and - as _."""
    kind, _, target = name.partition(":")
    return kind.strip().lower().replace("-", "_"), target.strip()


def is_file(text: str | None) -> bool:
    """Whether a text names a file or folder: it looks like a path, or there is one."""
    if not text:
        return False
    looks_like_a_path = text.startswith((".", "/", "~", "\\")) or "\\" in text or text.endswith(".gguf")
    path = text.rpartition("@")[0] or text
    try:
        return looks_like_a_path or Path(text).exists() or Path(path).exists()
    except (OSError, ValueError):  # too long, or it holds a null byte
        return True


def without_login(name: str) -> str:
    """A model's name, or an address, without login and query, which can hold a key: what a record keeps."""
    kind, _, rest = name.partition(":")
    if _kind_and_target(name)[0] not in _ADDRESSES:
        return name
    rest = rest.partition("?")[0]
    scheme, separator, address = rest.partition("//") if "//" in rest else ("", "", rest)
    host, slash, path = address.partition("/")
    return f"{kind}:{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


# --- what the operator allows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authority:
    """What the operator allows; by default, nothing.

    Attributes:
        grants: Kinds and values that are allowed; they can be secret.
        everything: Whether every value is allowed: for your own code, whose words are the operator's.
    """

    grants: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    everything: bool = False

    def allowing(self, names: Iterable[str]) -> Authority:
        """A copy that also allows these models: their code, addresses and folders."""
        return self.granting(map(model_value, names))

    def granting(self, values: Iterable[OperatorValue]) -> Authority:
        """A copy that also allows these values."""
        return Authority(self.grants.union((value.kind, value.text) for value in values), self.everything)

    def __or__(self, other: Authority) -> Authority:
        return Authority(self.grants | other.grants, self.everything or other.everything)

    def allows(self, value: OperatorValue) -> bool:
        """Whether the operator gave this value."""
        return (
            self.everything
            or (value.kind, value.text) in self.grants
            or (value.kind == MODEL and value.text in _named_by_environment())
        )

    def may_download(self, name: str) -> bool:
        """Whether the files of a model may be downloaded. Of a model that data names, only a copy is used."""
        return self.allows(model_value(name))

    def check(self, values: Iterable[OperatorValue]) -> None:
        """Check that every value may be used.

        Raises:
            InputError: The operator did not give one of them.
        """
        for value in values:
            if not self.allows(value) and not (value.kind == MODEL and is_downloaded(value.text)):
                raise InputError(_refusal(value))

    def check_model(self, name: str, options: BaseModel | None = None, group: str = "") -> None:
        """Check that a model's name and its options may be used.

        Args:
            name: The model's name.
            options: Its options.
            group: The setting that holds the options.

        Raises:
            InputError: The operator did not give one of them.
        """
        self.check([model_value(name)] if names_more_than_a_model(name) else [])
        if options is not None:
            self.check(operator_values(options, f"{group}."))


NO_AUTHORITY: Final = Authority()
"""The authority of data."""

OPERATOR: Final = Authority(everything=True)
"""The authority of a program that uses its own words only."""


def _refusal(value: OperatorValue) -> str:
    if value.kind == MODEL and is_code(value.text):
        return (
            f"{value.text!r} runs code, so a record, a request or a run's context may not name it; whoever runs this "
            f"program may, on the command line, in build_graph(settings=...) or in the variable {CODE}"
        )
    if (
        value.kind == MODEL
        and _kind_and_target(value.text)[0] in _WEIGHTS
        and not is_file(value.text.partition(":")[2])
    ):
        return (
            f"a record, a request or a run's context names {value.text!r} as the {value.path}, and this machine has no "
            f"copy of it; only whoever runs this program may download a model: give {value.option} {value.text} on the "
            "command line, or use build_graph(settings=...)"
        )
    value_label = f"{without_login(value.text)!r} as the {value.path}" if value.kind == MODEL else f"{value.path}"
    return (
        f"a record, a request or a run's context names {value_label}, but only whoever runs this program may name "
        f"addresses, keys, folders and code: give {value.option}"
        f"{' on the command line, or use build_graph(settings=...)' if value.option.startswith('--') else ''}"
    )


def _named_by_environment() -> set[str]:
    """The models that the environment names: code that may run, and the models of runs that name none."""
    code = {name.strip() for name in os.environ.get(CODE, "").split(",")}
    return {CHAT_MODEL, GENERATOR} | {name for name in code if is_code(name)}


# --- code -----------------------------------------------------------------------------------------------------------


def call_factory(name: str, options: object) -> Any:
    """Import MODULE and call FACTORY with the model's options. The caller has checked that this is allowed.

    Args:
        name: ``python:MODULE:FACTORY``. Both may be dotted: ``python:my_models.painter:Painter.small``.
        options: The factory's only argument.

    Raises:
        InputError: The name has another form, the module or the factory is missing, or one of them raised an error
            other than a ``GemsError``.
    """
    module, factory = _parts(name)
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the module's own code raises
        raise InputError(
            f"{name}: cannot import {module} ({_line(error)}); install it, or put its folder on PYTHONPATH"
        ) from error
    try:
        make = attrgetter(factory)(imported)
    except AttributeError as error:
        raise InputError(f"{name}: {module} has no {factory}") from error
    if not callable(make):
        raise InputError(f"{name}: {factory} is not callable; a factory takes the model's options")
    try:
        return make(options)
    except GemsError:
        raise
    except Exception as error:  # of the factory's own code
        raise InputError(f"{name}: {factory} failed: {_line(error)}") from error


def _parts(name: str) -> tuple[str, str]:
    module, _, factory = name.removeprefix(_PREFIX).partition(":")
    if not all(part.isidentifier() for text in (module, factory) for part in text.split(".")):
        raise InputError(f"{name!r} is not of the form python:MODULE:FACTORY")
    return module, factory


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
