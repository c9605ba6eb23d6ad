"""Loading local models: now, and without the libraries' progress bars, which would only be noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["load_now", "without_bars"]


def load_now(part: object) -> None:
    """Load the weights of a model now, rather than at its first use, if it is one that can."""
    load = getattr(part, "load", None)
    if callable(load):
        load()


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch the loading bars of diffusers and transformers off for a while; off before is off afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
