"""Which of many skills the planner is offered: the nearest in meaning, so that the catalogue never grows.

A few are offered whole. Beyond that, FAISS finds those whose description, or one of whose examples, is nearest to the
wish. An abstract description ("a definite number of things") is far from every wish in words; examples are not.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.messages.utils import count_tokens_approximately
from numpy.typing import NDArray

from gems.files import write_atomically
from gems.memory.embedder import embedder_fingerprint
from gems.paths import home_folder
from gems.skills.format import Skill

__all__ = ["CATALOGUE_TOKENS", "MOST_OFFERED", "offer"]

_LOG: Final = logging.getLogger(__name__)

MOST_OFFERED: Final = 16
"""Skills that are bound to the planner at once."""
CATALOGUE_TOKENS: Final = 1_600
"""About how many tokens their names and descriptions come to at most."""
_NOT: Final = re.compile(r"(?<=[.!?])\s+(?:Not|Do not|Don't|Never)\b.*")


def offer(skills: Sequence[Skill], wish: str, embedder: Callable[[], Embeddings]) -> list[Skill]:
    """The skills to offer for a wish, in the order in which they were given.

    Args:
        skills: All there are.
        wish: The user's words.
        embedder: Gives what embeds both; asked only where there are more than ``MOST_OFFERED``.
    """
    if len(skills) <= MOST_OFFERED:
        return list(skills)
    nearest = _nearest(tuple(skills), wish, embedder())
    chosen, left = list[int](), CATALOGUE_TOKENS
    for i in nearest:
        cost = count_tokens_approximately([f"{skills[i].name} {skills[i].description}"])
        if cost <= left and len(chosen) < MOST_OFFERED:
            chosen.append(i)
            left -= cost
    return [skills[i] for i in sorted(chosen)]


def _nearest(skills: tuple[Skill, ...], wish: str, embedder: Embeddings) -> list[int]:
    """Places of the skills, the nearest first: each as near as the nearest of its texts."""
    index, owners, centre = _index(skills, embedder)
    query = _unit(np.asarray([embedder.embed_query(wish)], np.float32)) - centre
    _, found = index.search(_unit(query), len(owners))
    return list(dict.fromkeys(owners[i] for i in found[0]))


def texts_of(skill: Skill) -> list[str]:
    """What stands for a skill: what it is for, without what it is not for, and its examples."""
    return [f"{skill.name.replace('-', ' ')}: {_NOT.sub('', skill.description)}", *skill.examples]


@lru_cache(maxsize=8)
def _index(skills: tuple[Skill, ...], embedder: Embeddings) -> tuple[Any, list[int], NDArray[np.float32]]:
    """An exact index over all texts, the place of the skill that each belongs to, and their mean vector.

    What all skills have in common ("use when the wish") says nothing: without their mean (Mu and Viswanath, 2018), the
    right one of five hundred was found for 96% of our skills' examples, each looked for without itself; with it, 77%.
    """
    import faiss

    owned = [(i, text) for i, skill in enumerate(skills) for text in texts_of(skill)]
    vectors = _vectors([text for _, text in owned], embedder)
    centre = vectors.mean(axis=0)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(_unit(vectors - centre))
    return index, [i for i, _ in owned], centre


def _vectors(texts: list[str], embedder: Embeddings) -> NDArray[np.float32]:
    """Their vectors, of unit length; kept on disk, since hundreds of skills take seconds."""
    told = "\0".join([embedder_fingerprint(embedder), *texts])
    path = home_folder() / "cache" / f"skills-{hashlib.sha256(told.encode('utf-8', 'replace')).hexdigest()[:24]}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if kept.ndim == 2 and len(kept) == len(texts) and kept.dtype == np.float32:
            return np.asarray(kept)
    except (OSError, ValueError, EOFError):
        _LOG.info("reading the descriptions of many skills, once (%d texts)", len(texts))
    vectors = _unit(np.asarray(embedder.embed_documents(texts), np.float32))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = io.BytesIO()
        np.save(saved, vectors)
        write_atomically(path, saved.getvalue())
    except OSError as error:  # a home that cannot be written to costs time, nothing else
        _LOG.info("the vectors of the skills were not kept: %s", error)
    return vectors


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
