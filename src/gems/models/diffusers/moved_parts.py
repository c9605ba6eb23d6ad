"""Classes of parts that diffusers itself does not find under the names that ``model_index.json`` has for them.

A part that belongs to one pipeline is named by the module of that pipeline, as in ``["wuerstchen", "PaellaVQModel"]``.
Diffusers has moved old pipelines to ``pipelines.deprecated``, but looks for their parts in ``pipelines`` alone. PRX has
an encoder that diffusers adds to transformers, but to a module that transformers may have replaced by then.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

__all__ = ["restore_parts"]


def restore_parts(components: Iterable[tuple[str, str]]) -> None:
    """Make diffusers find the classes of these parts; other names stay as they are.

    Args:
        components: The library and class of each, as a ``model_index.json`` names them.
    """
    from diffusers import pipelines

    for library, kind in components:
        if (library, kind) == ("transformers", "T5GemmaEncoder"):
            encoder = importlib.import_module(f"{pipelines.__name__}.prx").T5GemmaEncoder
            setattr(importlib.import_module(library), kind, encoder)
        if library.isidentifier() and not hasattr(pipelines, library):
            module = f"{pipelines.__name__}.deprecated.{library}"
            if importlib.util.find_spec(module) is not None:
                setattr(pipelines, library, importlib.import_module(module))
