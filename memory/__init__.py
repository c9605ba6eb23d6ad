"""What outlives a run: the store of trajectories and experiences, the embedder that searches it, and the images.

``FaissStore`` is a LangGraph store that any graph can use. It is imported when first accessed.
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
