"""Fresh prompts of the open models' world, in strata: what is asked for, in which language, and of which things."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gems.evals.prompts import EvalPrompt, Vqa
from gems.models.open.draft_wording import terse
from gems.models.open.foreign_wording import foreign
from gems.models.open.phrasebook import TONGUES
from gems.models.open.questions import questions_of
from gems.models.open.stage import sample_wish
from gems.models.open.things import BACKGROUNDS, THINGS
from gems.models.open.wish import Wish
from gems.models.open.wish_reading import read

__all__ = ["STRATA", "open_prompts"]

STRATA: Final = (
    "things",
    "relations",
    "counts",
    "sizes and places",
    "negations",
    "texts",
    "backgrounds",
    "languages",
    "unseen",
)
"""The strata, in turn. "unseen" has only things that no training has seen; all others have only those it has."""

_WORDS: Final = (
    "open",
    "hello",
    "stop",
    "sale",
    "free hugs",
    "be kind",
    "no entry",
    "for rent",
    "quiet",
    "good luck",
    "bakery",
)


def open_prompts(n: int, seed: int) -> list[EvalPrompt]:
    """``n`` different prompts, a ninth of them of each stratum."""
    rng = np.random.default_rng([seed, 23])
    prompts: dict[str, EvalPrompt] = {}
    while len(prompts) < n:
        stratum = STRATA[len(prompts) % len(STRATA)]
        wish = _sample(stratum, rng)
        language = str(rng.choice(TONGUES[1:])) if stratum == "languages" else "en"
        text = terse(wish) if language == "en" else foreign(wish, language)
        if language == "en" and read(text).wish != wish:
            continue  # a name that reads as something else, such as that of a thing after a look
        questions = tuple(Vqa(question, "Yes", meaning.kind) for question, meaning in questions_of(wish))
        prompts.setdefault(text, EvalPrompt(text, len(questions), questions, stratum))
    return list(prompts.values())


def _sample(stratum: str, rng: np.random.Generator) -> Wish:
    """A wish of a stratum, of at most three groups."""
    pool = [index for index, thing in enumerate(THINGS) if thing.is_seen != (stratum == "unseen")]
    while True:
        wish = sample_wish(rng, pool, _text if stratum == "texts" else None)
        if len(wish.groups) > 3:
            continue
        match stratum:
            case "things" | "unseen":
                return _plain(wish, keep_relations=stratum == "unseen")
            case "languages":
                return _plain(replace(wish, groups=wish.groups[:2]), keep_relations=False)
            case "relations" if wish.relations:
                return replace(wish, absent=(), background="")
            case "counts" if any(g.count > 4 for g in wish.groups):
                return _plain(wish, keep_relations=False)
            case "sizes and places" if any(g.size or g.place for g in wish.groups):
                return replace(wish, absent=(), background="")
            case "negations":
                absent = wish.absent or (int(rng.choice([t for t in pool if all(g.thing != t for g in wish.groups)])),)
                return replace(wish, absent=absent)
            case "texts" if any(g.text for g in wish.groups):
                return replace(wish, absent=())
            case "backgrounds":
                return replace(wish, absent=(), background=str(rng.choice(BACKGROUNDS)))


def _plain(wish: Wish, *, keep_relations: bool) -> Wish:
    groups = tuple(replace(g, size="", place="") for g in wish.groups)
    return Wish(groups, wish.relations if keep_relations else ())


def _text(rng: np.random.Generator) -> str:
    return str(rng.choice(_WORDS)).upper()
