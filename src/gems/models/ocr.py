"""Reads what is written in an image, and compares it with what should be. Needs the extra ``ocr``."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from PIL import Image
from rapidfuzz.distance import Levenshtein
from rapidocr import RapidOCR

from gems.graph.state import Kind, Requirement
from gems.models.inspectors import INSPECTORS, Finding
from gems.wording import quoted_texts

__all__ = ["OcrInspector", "similarity"]

_MISREAD: Final = 0.8
"""Below this similarity other words stand there; from here up to 1, the reader may be wrong in a letter or two."""

_ABSENT: Final = 0.05
"""The probability that the text is there when something else was read clearly."""

_BLIND: Final = 0.25
"""The same when nothing was read at all: drawn letters often escape a reader that was trained on print."""


class OcrInspector:
    """RapidOCR with the models in its package; about a second an image on a CPU."""

    name = "ocr"
    kinds: frozenset[Kind] = INSPECTORS["ocr"].kinds

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @cached_property
    def _reader(self) -> Any:
        return RapidOCR(params={"Global.log_level": "error"})

    def inspect(self, image: Image.Image, requirements: Sequence[Requirement]) -> list[Finding]:
        """Read the image once, and hold every requirement's quoted words against it."""
        words, confidence = self.read(image)
        return [_finding(r, words, confidence) for r in requirements]

    def read(self, image: Image.Image) -> tuple[list[str], float]:
        """The words in reading order, and the reader's mean confidence in [0, 1] (0 where nothing was read)."""
        with self._lock:  # the reader keeps its settings of a call on itself
            result = self._reader(np.asarray(image.convert("RGB"))[:, :, ::-1])  # it expects BGR
        if not result.txts:
            return [], 0.0
        # Lines from top to bottom; each line is its own box, so that a box's upper left corner orders them.
        lines = sorted(zip(result.boxes, result.txts, strict=True), key=lambda line: (line[0][0][1], line[0][0][0]))
        return [word for _, text in lines for word in text.split()], float(np.mean(result.scores))


def _finding(requirement: Requirement, words: Sequence[str], confidence: float) -> Finding:
    seen = f'reads "{" ".join(words)[:200]}"' if words else "reads no text"
    wanted = quoted_texts(requirement.question)
    if not wanted:
        return Finding(requirement.id, seen)
    if not words:
        return Finding(requirement.id, seen, _BLIND)
    match = min(similarity(text, words) for text in wanted)
    seen += f", {match:.0%} like what is asked for"
    if match < _MISREAD:
        return Finding(requirement.id, seen, _ABSENT)
    return Finding(requirement.id, seen, (1 + confidence) / 2 if match == 1 else None)


def similarity(wanted: str, words: Sequence[str]) -> float:
    """How near some run of consecutive words comes to the wanted text, in [0, 1].

    One less the edit distance (Levenshtein) over the longer length, on letters and digits alone: case, spacing and
    punctuation are what readers most often get wrong. Whole words are compared, so that "pen" is not found in "open".
    """
    target = _letters(wanted)
    if not target:
        return 0.0
    longest = len(wanted.split()) + 2  # a reader may split words that are written apart
    runs = ("".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))
    return max((Levenshtein.normalized_similarity(target, _letters(run)) for run in runs), default=0.0)


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
