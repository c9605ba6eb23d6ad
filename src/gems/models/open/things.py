"""What the open models know: almost 900 things that can be drawn, and what can be said of them.

A thing is a drawing, of Twemoji or of our own, with an English name. Its index in ``THINGS`` is its class in every
open model. What people call it, in any language, is in the tables beside ``things.txt``;
see ``gems.models.open.phrasebook``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

__all__ = [
    "ARRANGEMENTS",
    "BACKGROUNDS",
    "DEPTHS",
    "INDEX",
    "LOOK_NAMES",
    "MAX_COUNT",
    "PLACES",
    "RELATIONS",
    "SIZES",
    "THINGS",
    "VERBS",
    "WORDS_FOLDER",
    "Home",
    "Thing",
]

WORDS_FOLDER: Final = Path(__file__).parent / "words"

Home = Literal["ground", "air", "water", "sky"]
"""Where a thing is at home, which is where it is put if nothing else is asked for."""


class Thing(NamedTuple):
    """A drawing: its name, code point or file, kind ("animal"), home, size if a chair has 1, and if training saw it."""

    name: str
    twemoji: str
    kind: str
    home: Home
    size: float
    is_seen: bool


def _read() -> Iterator[Thing]:
    heading: tuple[str, Home, float] = ("", "ground", 1.0)
    for line in (WORDS_FOLDER / "things.txt").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[(\w+) (ground|air|water|sky) ([\d.]+)\]", line):
            kind, home, size = match.groups()
            heading = (kind, home, float(size))  # type: ignore[assignment]
        elif line and not line.startswith("#"):
            twemoji, _, name = line.partition(" ")
            yield Thing(name.removesuffix(" *"), twemoji, *heading, not name.endswith(" *"))


THINGS: Final = tuple(_read())
INDEX: Final[dict[str, int]] = {thing.name: index for index, thing in enumerate(THINGS)}

LOOK_NAMES: Final = (
    "",
    *("white", "brown", "red", "purple", "blue", "black", "pink", "green", "yellow", "orange", "grey"),
    *("glass", "metal", "stone", "plastic", "wooden"),
    *("sparkling", "checkered", "striped", "spotted"),
)
"""The looks; index 0 is a thing in its natural colours."""

SIZES: Final[dict[str, tuple[float, float]]] = {
    "tiny": (0.0, 0.105),
    "small": (0.0, 0.165),
    "big": (0.27, 1.0),
    "huge": (0.37, 1.0),
}
"""The sides of a thing's square, as shares of the canvas, between which it has a size."""

MAX_COUNT: Final = 12

RELATIONS: Final = (
    *("to the left of", "to the right of", "in front of", "behind", "under", "above"),
    *("next to", "between", "around", "chasing", "jumping over", "playing with"),
    *("on", "holding", "flying over", "in"),
)
"""What things can be to each other. "on" is sitting, standing or riding on; "between" has two other groups."""

VERBS: Final = ("chasing", "jumping over", "playing with", "holding", "flying over")
"""The relations that say what things do."""

PLACES: Final = (
    *("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right"),
    "corner",
)
"""The nine parts of the canvas, row by row, and any of the four corners."""

DEPTHS: Final = ("background", "foreground")

ARRANGEMENTS: Final = ("in a row", "in a column", "in two rows", "in a ring")

BACKGROUNDS: Final = (
    *("meadow", "sea", "forest", "desert", "snow", "city", "space", "night", "sunset", "room", "plain", "sky"),
)
"""The backgrounds. One that is asked for must be there; without one, any may be."""
