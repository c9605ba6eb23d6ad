"""Tools that look at an image in addition to the verifier's chat model. OCR is included; you can add others.

A tool's findings are shown to the chat model as evidence, and decide requirements that the chat model is unsure of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from PIL import Image

from gems.graph.state import Box, Kind, Requirement

__all__ = ["INSPECTORS", "Finding", "Inspector"]


@dataclass(frozen=True, slots=True)
class KnownInspector:
    """What can be said about a named inspector without importing its packages."""

    kinds: frozenset[Kind]
    """The kinds of requirements that it inspects."""
    extra: str
    """The extra of this package that it needs."""


INSPECTORS: Final = {"ocr": KnownInspector(frozenset({"text"}), "ocr")}
"""The included inspectors, by name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A tool's result for one requirement.

    Attributes:
        requirement_id: The id of the requirement.
        evidence: One line about the tool's observation.
        probability: The probability that the requirement is met, in [0, 1]; None if the tool cannot tell.
        boxes: Where the tool saw it.

    Raises:
        ValueError: The probability is none, such as a percentage or NaN.
    """

    requirement_id: str
    evidence: str
    probability: float | None = None
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        """Let evidence be one line, since each line is about one requirement, and a probability a Python number."""
        object.__setattr__(self, "evidence", " ".join(self.evidence.split()))
        if self.probability is not None:
            object.__setattr__(self, "probability", float(self.probability))  # also of NumPy or torch
            if not 0 <= self.probability <= 1:
                raise ValueError(f"a finding's probability is {self.probability:g}, which is not in [0, 1]")


@runtime_checkable
class Inspector(Protocol):
    """A tool that inspects images. Pass your own to ``build_graph(inspectors=[...])``."""

    @property
    def name(self) -> str:
        """The name shown beside its findings."""
        ...

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of requirements that it inspects; it is asked about no others."""
        ...

    def inspect(self, image: Image.Image, requirements: Sequence[Requirement]) -> list[Finding]:
        """At most one finding per requirement. It may be called from several threads at once."""
        ...
