"""The package's extras, and how to install one: the only place that knows the name of the distribution.

The distribution is on no package index, so ``pip install "NAME[extra]"`` finds nothing. What an extra consists of is on
an index, and is read from the metadata of the installed distribution: naming that works for a clone and for a wheel.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from functools import cache
from typing import Final

__all__ = ["DISTRIBUTION", "how_to_install", "packages_of"]

DISTRIBUTION: Final = "gems-graph"
"""The name in pyproject.toml."""

_MARKER: Final = re.compile(r"""\bextra\s*==\s*["']([^"']+)["']""")


@cache
def packages_of(extra: str) -> tuple[str, ...]:
    """The requirements of an extra, such as "ray[data]>=2.50"; empty if there is no such extra."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return ()
    parts = (requirement.partition(";") for requirement in requirements)
    return tuple(text.strip() for text, _, marker in parts if (m := _MARKER.search(marker)) and m[1] == extra)


def how_to_install(extra: str) -> str:
    """The command that installs what an extra needs, for the end of an error message."""
    packages = packages_of(extra) or (f"{DISTRIBUTION}[{extra}]",)
    return f"pip install {' '.join(map(shlex.quote, packages))} (the extra {extra!r})"
