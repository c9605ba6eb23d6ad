"""Reads the text in an image and compares it with the requested text. Needs the extra ``ocr``."""

from __future__ import annotations

import os
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
"""Similarity below which the image shows another text. From here to 1, OCR may have misread a letter or two."""

_PROBABILITY_IF_OTHER_TEXT: Final = 0.05
"""Probability that the requested text is in the image although another text was read."""

_PROBABILITY_IF_NO_TEXT: Final = 0.25
"""The same if no text was read at all: OCR, which is trained on print, often misses drawn letters."""


class OcrInspector:
    """RapidOCR with the models in its package; it takes about a second per image on a CPU."""

    name = "ocr"
    kinds: frozenset[Kind] = INSPECTORS["ocr"].kinds

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @cached_property
    def _reader(self) -> Any:
        # ONNX Runtime does not read the variable that limits the threads of other libraries.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        limit = {"EngineConfig.onnxruntime.intra_op_num_threads": int(threads)} if threads.isdecimal() else {}
        return RapidOCR(params={"Global.log_level": "error", **limit})

    def inspect(self, image: Image.Image, requirements: Sequence[Requirement]) -> list[Finding]:
        """Read the image once, and compare it with the quoted text of each requirement."""
        words, confidence = self.read(image)
        return [_finding(r, words, confidence) for r in requirements]

    def read(self, image: Image.Image) -> tuple[list[str], float]:
        """The words in reading order, and the mean confidence of OCR in [0, 1], which is 0 if no text was read."""
        with self._lock:  # RapidOCR keeps the settings of a call on the object
            result = self._reader(np.asarray(image.convert("RGB"))[:, :, ::-1])  # it expects BGR
        if not result.txts:
            return [], 0.0
        # Each line of text is one box. Sort by the upper left corner: top to bottom, then left to right.
        lines = sorted(zip(result.boxes, result.txts, strict=True), key=lambda line: (line[0][0][1], line[0][0][0]))
        return [word for _, text in lines for word in text.split()], float(np.mean(result.scores))


def _finding(requirement: Requirement, words: Sequence[str], confidence: float) -> Finding:
    evidence = f'reads "{" ".join(words)[:200]}"' if words else "reads no text"
    texts = quoted_texts(requirement.question)
    if not texts:
        return Finding(requirement.id, evidence)
    if not words:
        return Finding(requirement.id, evidence, _PROBABILITY_IF_NO_TEXT)
    match = min(similarity(text, words) for text in texts)
    evidence += f", {match:.0%} like what is asked for"
    if match < _MISREAD:
        return Finding(requirement.id, evidence, _PROBABILITY_IF_OTHER_TEXT)
    return Finding(requirement.id, evidence, (1 + confidence) / 2 if match == 1 else None)


def similarity(text: str, words: Sequence[str]) -> float:
    """The similarity of a text to the most similar run of consecutive words, in [0, 1].

    It is 1 minus the Levenshtein distance divided by the longer length, on letters and digits only, since OCR is weak
    at case, spacing and punctuation. Whole words are compared, so that "pen" is not found in "open".
    """
    target = _letters(text)
    if not target:
        return 0.0
    longest = len(text.split()) + 2  # OCR may split a word in two
    runs = ("".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))
    return max((Levenshtein.normalized_similarity(target, _letters(run)) for run in runs), default=0.0)


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
