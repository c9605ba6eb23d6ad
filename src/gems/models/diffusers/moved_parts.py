"""Pipelines that diffusers has moved to ``pipelines.deprecated``: the classes of their parts, at the place they had.

A ``model_index.json`` names a part that belongs to one pipeline by the module of that pipeline, as in ``["wuerstchen",
"PaellaVQModel"]``. Diffusers looks for it in ``diffusers.pipelines`` alone, and so cannot load older repositories.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

__all__ = ["restore_modules"]


def restore_modules(libraries: Iterable[str]) -> None:
    """Make diffusers find those of these modules that it has moved; other names stay as they are.

    Args:
        libraries: The first entries of the components of a ``model_index.json``.
    """
    from diffusers import pipelines

    for library in set(libraries):
        if library.isidentifier() and not hasattr(pipelines, library):
            module = f"{pipelines.__name__}.deprecated.{library}"
            if importlib.util.find_spec(module) is not None:
                setattr(pipelines, library, importlib.import_module(module))
