"""GEMS: an agent graph around a text-to-image model.

It plans a prompt, generates an image, checks it requirement by requirement, refines the prompt and repeats until the
image is right or the budget is spent; it remembers what worked. ``build_graph()`` returns the graph, ``GemsContext``
holds its settings.

``__all__`` is the public Python interface. A name is imported when it is first used, so that ``import gems`` stays
cheap: it loads no model library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # for type checkers and editors; _MODULES says the same at run time, and a test compares the two
    from gems.authority import OPERATOR as OPERATOR
    from gems.authority import Authority as Authority
    from gems.errors import BackendError as BackendError
    from gems.errors import ContentRefusedError as ContentRefusedError
    from gems.errors import GemsError as GemsError
    from gems.errors import InputError as InputError
    from gems.errors import MalformedAnswerError as MalformedAnswerError
    from gems.graph.builder import GemsGraph as GemsGraph
    from gems.graph.builder import build_graph as build_graph
    from gems.graph.context import GemsContext as GemsContext
    from gems.graph.lifetime import close as close
    from gems.graph.lifetime import open_graph as open_graph
    from gems.graph.lifetime import warm as warm
    from gems.graph.node import as_node as as_node
    from gems.graph.state import About as About
    from gems.graph.state import Attempt as Attempt
    from gems.graph.state import Box as Box
    from gems.graph.state import Budget as Budget
    from gems.graph.state import GemsInput as GemsInput
    from gems.graph.state import GemsOutput as GemsOutput
    from gems.graph.state import GemsState as GemsState
    from gems.graph.state import ImageRef as ImageRef
    from gems.graph.state import Kind as Kind
    from gems.graph.state import Outcome as Outcome
    from gems.graph.state import Prices as Prices
    from gems.graph.state import Requirement as Requirement
    from gems.graph.state import Review as Review
    from gems.graph.state import TokenPrices as TokenPrices
    from gems.graph.state import Turn as Turn
    from gems.graph.state import Usage as Usage
    from gems.graph.state import Verdict as Verdict
    from gems.graph.state import checkpoint_types as checkpoint_types
    from gems.graph.tool import as_tool as as_tool
    from gems.memory.embedder import init_embedder as init_embedder
    from gems.memory.image_store import ImageStore as ImageStore
    from gems.memory.store import FaissStore as FaissStore
    from gems.models.generators import Asynchronous as Asynchronous
    from gems.models.generators import Edit as Edit
    from gems.models.generators import GeneratedImage as GeneratedImage
    from gems.models.generators import Guided as Guided
    from gems.models.generators import ImageGenerator as ImageGenerator
    from gems.models.generators import ImageRequest as ImageRequest
    from gems.models.generators import Local as Local
    from gems.models.generators import Step as Step
    from gems.models.generators import StepCallback as StepCallback
    from gems.models.inspectors import Finding as Finding
    from gems.models.inspectors import Inspector as Inspector
    from gems.models.registry import init_image_generator as init_image_generator
    from gems.models.registry import init_mllm as init_mllm
    from gems.options import ChatOptions as ChatOptions
    from gems.options import GeneratorOptions as GeneratorOptions
    from gems.options import RoleOptions as RoleOptions

__version__ = "0.1.0"  # the only place; pyproject.toml reads it here

_MODULES: Final = {
    # The agent.
    "gems.graph.builder": ("GemsGraph", "build_graph"),
    "gems.graph.tool": ("as_tool",),
    "gems.graph.node": ("as_node",),
    "gems.graph.lifetime": ("close", "open_graph", "warm"),
    # What goes in and what comes out.
    "gems.graph.context": ("GemsContext",),
    "gems.options": ("ChatOptions", "GeneratorOptions", "RoleOptions"),
    "gems.graph.state": (
        "About",
        "Attempt",
        "Box",
        "Budget",
        "GemsInput",
        "GemsOutput",
        "GemsState",
        "ImageRef",
        "Kind",
        "Outcome",
        "Prices",
        "Requirement",
        "Review",
        "TokenPrices",
        "Turn",
        "Usage",
        "Verdict",
        "checkpoint_types",
    ),
    "gems.errors": (
        "BackendError",
        "ContentRefusedError",
        "GemsError",
        "InputError",
        "MalformedAnswerError",
    ),
    # What can be replaced: models, tools and stores.
    "gems.models.registry": ("init_image_generator", "init_mllm"),
    "gems.authority": ("OPERATOR", "Authority"),
    "gems.models.generators": (
        "Asynchronous",
        "Edit",
        "GeneratedImage",
        "Guided",
        "ImageGenerator",
        "ImageRequest",
        "Local",
        "Step",
        "StepCallback",
    ),
    "gems.models.inspectors": ("Finding", "Inspector"),
    "gems.memory.embedder": ("init_embedder",),
    "gems.memory.image_store": ("ImageStore",),
    "gems.memory.store": ("FaissStore",),
}
"""Where each public name is defined."""

_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gems' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
