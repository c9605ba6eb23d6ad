"""Parts that a thing's drawing always has, so that no wish can leave them out."""

from __future__ import annotations

from typing import Final

from gems.models.open.things import INDEX

__all__ = ["has_part"]

_HAT: Final = ("sun hat",)  # what "hat" is read as
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("snowman", "plain snowman"), (*_HAT, "top hat", "scarf")),
    **dict.fromkeys(("farmer", "chef", "detective", "cowboy", "Santa Claus", "wizard", "artist", "guard"), _HAT),
    **dict.fromkeys(("mechanic", "pilot", "police officer"), (*_HAT, "cap")),
    **dict.fromkeys(("construction worker", "firefighter"), (*_HAT, "hard hat", "military helmet")),
    **dict.fromkeys(("king", "prince", "princess"), ("crown",)),
    **dict.fromkeys(("skier", "snowboarder"), ("scarf", "goggles")),
    "student": (*_HAT, "graduation cap"),
    "ninja": ("sword",),
    "scientist": ("goggles", "pair of glasses"),
    "cool smiley": ("pair of sunglasses", "pair of glasses"),
    "programmer": ("laptop",),
    "singer": ("microphone",),
    "doctor": ("stethoscope",),
    "cyclist": ("bicycle",),
    "jockey": ("horse",),
    "birthday cake": ("candle",),
    "beach with umbrella": ("umbrella", "beach umbrella"),
    "nest with eggs": ("egg",),
}
"""By a thing's name, the names of things that its drawing shows too."""


def has_part(name: str, part: int) -> bool:
    """Whether the drawing of a thing always shows another."""
    return any(INDEX[own] == part for own in _PARTS.get(name, ()))
