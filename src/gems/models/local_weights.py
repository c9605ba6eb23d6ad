"""Loading local models: at once, without the progress bars of the libraries, and without their questions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from gems.errors import InputError
from gems.secrets import one_line

__all__ = ["load_now", "refuse_kernels", "without_bars", "without_questions"]

_QUESTIONS: Final = threading.Lock()
_blocks: Final[list[int]] = []
"""For each block ``without_questions`` that is running, the number of seconds to restore at the end of the last."""


def load_now(part: object) -> None:
    """Load the weights of a model now rather than at its first use, if it has a method ``load``."""
    load = getattr(part, "load", None)
    if callable(load):
        load()


def refuse_kernels(config: Any, place: str) -> None:
    """Refuse a configuration of transformers that names a repository of kernels, whose code would be run.

    With the package ``kernels``, transformers downloads and imports what stands in place of the name of an attention,
    whether or not it may run code that lies beside the weights.

    Args:
        config: The configuration of a model, which may hold those of its parts.
        place: Where the model lies.

    Raises:
        InputError: It names one.
    """
    from transformers import PreTrainedConfig

    pending, checked_parts = [config], set[int]()
    while pending:
        part = pending.pop()
        if id(part) in checked_parts:
            continue
        checked_parts.add(id(part))
        for name, value in vars(part).items():
            if isinstance(value, PreTrainedConfig):
                pending.append(value)
            elif name.endswith("_implementation_internal") and "/" in str(value):
                raise InputError(
                    f"{place} names {one_line(str(value), 80)!r}, whose code would be downloaded and run; remove "
                    f"{name.removeprefix('_').removesuffix('_internal')} from its config.json"
                )


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn off the progress bars of diffusers and transformers for the block, then restore their former state.

    Those that are imported within the block keep theirs.
    """
    libraries: list[Any] = [sys.modules.get(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    enabled = [library for library in libraries if library is not None and library.is_progress_bar_enabled()]
    for module in enabled:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in enabled:
            module.enable_progress_bar()


@contextmanager
def without_questions() -> Iterator[None]:
    """Let transformers refuse code that lies beside weights, for the block.

    Unless it is told otherwise, it asks on the terminal whether to run the code, and reads the answer from the standard
    input, whatever that is. What it loads for diffusers, or for a processor, it cannot be told about.
    """
    from transformers import dynamic_module_utils as modules

    with _QUESTIONS:
        _blocks.append(_blocks[0] if _blocks else modules.TIME_OUT_REMOTE_CODE)
        modules.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        with _QUESTIONS:
            seconds = _blocks.pop()
            if not _blocks:
                modules.TIME_OUT_REMOTE_CODE = seconds
