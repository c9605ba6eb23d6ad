"""GEMS: an agent graph around a text-to-image model.

It plans a prompt, generates an image, checks it requirement by requirement, refines and goes round; it remembers what
worked. ``build_graph()`` gives the graph; ``GemsContext`` its settings. Names are imported when first used, so that
``import gems`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gems.errors import BackendError, GemsError, InputError
    from gems.graph.builder import GemsGraph, build_graph
    from gems.graph.context import GemsContext
    from gems.graph.state import (
        Attempt,
        Budget,
        GemsInput,
        GemsOutput,
        GemsState,
        ImageRef,
        Prices,
        Requirement,
        Review,
        Usage,
        Verdict,
    )
    from gems.graph.tool import as_tool
    from gems.memory.image_store import ImageStore
    from gems.memory.store import FaissStore
    from gems.models.registry import init_image_generator, init_mllm

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "BackendError",
    "Budget",
    "FaissStore",
    "GemsContext",
    "GemsError",
    "GemsGraph",
    "GemsInput",
    "GemsOutput",
    "GemsState",
    "ImageRef",
    "ImageStore",
    "InputError",
    "Prices",
    "Requirement",
    "Review",
    "Usage",
    "Verdict",
    "__version__",
    "as_tool",
    "build_graph",
    "init_image_generator",
    "init_mllm",
]

_HOMES = {
    "gems.graph.builder": ("GemsGraph", "build_graph"),
    "gems.graph.context": ("GemsContext",),
    "gems.errors": ("BackendError", "GemsError", "InputError"),
    "gems.graph.state": (
        "Attempt",
        "Budget",
        "GemsInput",
        "GemsOutput",
        "GemsState",
        "ImageRef",
        "Prices",
        "Requirement",
        "Review",
        "Usage",
        "Verdict",
    ),
    "gems.graph.tool": ("as_tool",),
    "gems.memory.image_store": ("ImageStore",),
    "gems.memory.store": ("FaissStore",),
    "gems.models.registry": ("init_mllm",),
    "gems.models.generators": ("init_image_generator",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gems' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
