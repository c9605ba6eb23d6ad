"""What outlives a run: the store of trajectories, the embedder that finds them again, and the images.

``from gems.memory import FaissStore`` is a LangGraph store of its own right; names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gems.memory.store import FaissStore

__all__ = ["FaissStore"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gems.memory' has no attribute {name!r}")
    from gems.memory import store

    return getattr(store, name)
