"""Loading the weights of local models: at once, and without the progress bars of the libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["load_now", "without_bars"]


def load_now(part: object) -> None:
    """Load the weights of a model now rather than at its first use, if it has a method ``load``."""
    load = getattr(part, "load", None)
    if callable(load):
        load()


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn off the progress bars of diffusers and transformers for the block, then restore their former state."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    enabled = [module for module in (diffusers_logging, transformers_logging) if module.is_progress_bar_enabled()]
    for module in enabled:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in enabled:
            module.enable_progress_bar()
