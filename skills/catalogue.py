"""Selects the skills that the planner is offered: those nearest in meaning, so that the catalogue stays small.

A few skills are all offered. Among more, FAISS finds those whose description, or one of whose examples, is nearest to
the prompt. An abstract description ("a definite number of things") is far from every prompt; examples are not.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings
from langchain_core.messages.utils import count_tokens_approximately

from gems.files import read_regular, write_atomically
from gems.memory.embedder import embedder_fingerprint
from gems.paths import home_folder, make_folder
from gems.skills.format import Skill

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CATALOGUE_TOKENS", "MAX_OFFERED", "offer", "suits"]

_LOG: Final = logging.getLogger(__name__)

MAX_OFFERED: Final = 16
"""Maximum number of skills that are bound to the planner."""
CATALOGUE_TOKENS: Final = 1_600
"""Approximate limit on the tokens of their names and descriptions."""
_NUMBER, _NUMBER_BYTES = "<f4", 4
"""The numbers of the vectors in a file, and the bytes of each."""
_NOT: Final = re.compile(r"(?<=[.!?])\s+(?:Not|Do not|Don't|Never)\b.*")


def suits(skill: Skill, generator: str, fingerprint: str) -> bool:
    """Whether a skill is for an image model. What was learned on one was tried on that one only.

    Args:
        skill: The skill.
        generator: The image model's name.
        fingerprint: The fingerprint of its weights.
    """
    if skill.origin != "learned":
        return True
    weights, name = skill.metadata.get("gems-generator-fingerprint"), skill.metadata.get("gems-generator")
    return weights == fingerprint if weights else name in (None, generator)


def offer(skills: Sequence[Skill], prompt: str, embedder: Callable[[], Embeddings]) -> list[Skill]:
    """The skills to offer for a prompt, in their original order.

    Args:
        skills: All skills.
        prompt: The user's prompt.
        embedder: Makes the embedder; called only if there are more than ``MAX_OFFERED`` skills.
    """
    if len(skills) <= MAX_OFFERED:
        return list(skills)
    indices, tokens_left = list[int](), CATALOGUE_TOKENS
    for i in _nearest(tuple(skills), prompt, embedder()):
        cost = count_tokens_approximately([f"{skills[i].name} {skills[i].description}"])
        if cost <= tokens_left and len(indices) < MAX_OFFERED:
            indices.append(i)
            tokens_left -= cost
    return [skills[i] for i in sorted(indices)]


def _nearest(skills: tuple[Skill, ...], prompt: str, embedder: Embeddings) -> list[int]:
    """Skill indices, nearest first. A skill's distance is that of its closest text."""
    import numpy as np

    query = _unit(np.asarray([embedder.embed_query(prompt)], np.float32))
    index, owners, centre = _index(skills, embedder, query.shape[1])
    query -= centre
    _, neighbours = index.search(_unit(query), len(owners))
    return list(dict.fromkeys(owners[i] for i in neighbours[0]))


def texts_of(skill: Skill) -> list[str]:
    """The texts that represent a skill: its description without what it is not for, and its examples."""
    return [f"{skill.name.replace('-', ' ')}: {_NOT.sub('', skill.description)}", *skill.examples]


@lru_cache(maxsize=8)
def _index(skills: tuple[Skill, ...], embedder: Embeddings, dims: int) -> tuple[Any, list[int], NDArray[np.float32]]:
    """An exact index over all texts, the index of the skill that each text belongs to, and the mean vector.

    The mean is what all skills have in common ("use when the wish"), and is subtracted (Mu and Viswanath, 2018). For
    the examples of our skills, each left out in turn, the right one of 500 skills was found in 96%; without, in 77%.
    """
    import faiss

    texts = [(i, text) for i, skill in enumerate(skills) for text in texts_of(skill)]
    vectors = _vectors([text for _, text in texts], embedder, dims)
    centre = vectors.mean(axis=0)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(_unit(vectors - centre))
    return index, [i for i, _ in texts], centre


def _vectors(texts: list[str], embedder: Embeddings, dims: int) -> NDArray[np.float32]:
    """The texts' vectors, of unit length, cached on disk: embedding hundreds of skills takes seconds.

    The file holds numbers and no header, which could ask for more memory than there is.
    """
    import numpy as np

    identity = "\0".join([embedder_fingerprint(embedder), *texts])
    name = f"skills-{hashlib.sha256(identity.encode('utf-8', 'replace')).hexdigest()[:24]}.f32"
    path = home_folder() / "cache" / name
    size = len(texts) * dims * _NUMBER_BYTES
    try:
        content = read_regular(path, within=home_folder(), limit=size)
    except OSError:
        content = b""
    cached = np.frombuffer(content, _NUMBER) if len(content) == size else np.empty(0, _NUMBER)
    if len(cached) and np.isfinite(cached).all():
        return cached.reshape(len(texts), dims).astype(np.float32)
    _LOG.info("embedding the descriptions of all skills (%d texts)", len(texts))
    vectors = _unit(np.asarray(embedder.embed_documents(texts), np.float32))
    try:
        make_folder(path.parent)
        write_atomically(path, vectors.astype(_NUMBER).tobytes())
    except OSError as error:  # without a writable home, they are embedded again next time
        _LOG.info("the vectors of the skills were not cached: %s", error)
    return vectors


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
