"""Tools that look at an image beside the verifier's chat model: OCR comes with us, detectors and scorers are yours.

What a tool finds is shown to the chat model as evidence, and settles a requirement that the chat model is unsure of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from PIL import Image

from gems.graph.state import Kind, Requirement

__all__ = ["INSPECTORS", "Finding", "Inspector"]


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to know about a named inspector before its packages are imported."""

    kinds: frozenset[Kind]
    package: str


INSPECTORS: Final = {"ocr": Known(frozenset({"text"}), "gems-graph[ocr]")}
"""Inspectors by name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a tool has to say about one requirement.

    Attributes:
        requirement_id: Which one.
        evidence: What was seen, in one line.
        probability: That the requirement is met, in [0, 1]; None where the tool cannot tell.
    """

    requirement_id: str
    evidence: str
    probability: float | None = None


@runtime_checkable
class Inspector(Protocol):
    """A tool. Hand yours to ``build_graph(inspectors=[...])``."""

    @property
    def name(self) -> str:
        """What to call it beside its findings."""
        ...

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of requirements that it can say something about; it is asked about no others."""
        ...

    def inspect(self, image: Image.Image, requirements: Sequence[Requirement]) -> list[Finding]:
        """At most one finding per requirement. It may be called from several threads at once."""
        ...
