"""What only the operator decides: the person who runs this program, by command line, environment or own Python code.

A model's name can be ``python:MODULE:FACTORY``, which runs code. Model names also arrive as data: in the context that a
parent graph or a server passes on, in a request, a record, a batch's folder, a checkpoint or a memory. Data must not
run code. The permission is therefore not a setting. The command line and ``build_graph(settings=...)`` attach an
``Authority`` to the settings that they make; it is never written down and never read from data; and
``init_image_generator`` and ``init_mllm`` run no code without it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from gems.errors import GemsError, InputError
from gems.secrets import one_line

__all__ = ["CODE", "NO_AUTHORITY", "Authority", "call_factory", "is_code"]

CODE: Final = "GEMS_CODE"
"""The environment variable that lists, with commas, the ``python:`` names that may run wherever they are named."""

_PREFIX: Final = "python:"


@dataclass(frozen=True, slots=True)
class Authority:
    """What the operator allows; by default, nothing.

    Attributes:
        code: The ``python:`` names that may be run.
    """

    code: frozenset[str] = frozenset()

    def allowing(self, names: Iterable[str]) -> Authority:
        """A copy that also allows those of the names that run code."""
        return Authority(self.code.union(filter(is_code, names)))

    def check(self, name: str) -> None:
        """Check that a model's name may be used.

        Raises:
            InputError: It runs code that the operator has not allowed.
        """
        if is_code(name) and name not in self.code and name not in _listed_in_environment():
            raise InputError(
                f"{name!r} runs code, so a record, a request or a run's context may not name it; whoever runs this "
                f"program may, on the command line, in build_graph(settings=...) or in the variable {CODE}"
            )


NO_AUTHORITY: Final = Authority()
"""The authority of data."""


def is_code(name: str) -> bool:
    """Whether a model's name runs code."""
    return name.startswith(_PREFIX)


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


def _listed_in_environment() -> set[str]:
    return {name.strip() for name in os.environ.get(CODE, "").split(",")}


def _parts(name: str) -> tuple[str, str]:
    module, _, factory = name.removeprefix(_PREFIX).partition(":")
    if not all(part.isidentifier() for text in (module, factory) for part in text.split(".")):
        raise InputError(f"{name!r} is not of the form python:MODULE:FACTORY")
    return module, factory


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
