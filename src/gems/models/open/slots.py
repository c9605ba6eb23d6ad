"""Scenes as numbers: the slots that the open generator denoises, and the way back to a scene.

Row 0 is the background, the next ``MAX_THINGS`` rows are things, the last ``MAX_LETTERS`` rows the letters of a text.
A thing's row is its presence (1 or -1), the vector of its name, its look, place, size and depth, and whether the text
stands on it. A vector that lies between two names is drawn as the nearer one.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gems.models.open.stage import MAX_THINGS, Item, Scene
from gems.models.open.things import BACKGROUNDS, LOOK_NAMES, WORDS_FOLDER

__all__ = [
    "ALPHABET",
    "MAX_LETTERS",
    "NUM_SLOTS",
    "SLOT_DIM",
    "VECTOR",
    "decode",
    "encode",
    "encode_item",
    "thing_vectors",
    "writable",
]

VECTOR: Final = 32
"""Numbers of a thing's vector: the sentence embedding of its name, reduced (see ``training/embed_things.py``)."""

ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !?&.-'"
MAX_LETTERS: Final = 16

NUM_SLOTS: Final = 1 + MAX_THINGS + MAX_LETTERS
_LOOK: Final = slice(1 + VECTOR, 1 + VECTOR + len(LOOK_NAMES))
_BOX: Final = slice(_LOOK.stop, _LOOK.stop + 4)
_LETTERED: Final = _BOX.stop
SLOT_DIM: Final = _LETTERED + 1

_BOX_MEAN: Final = np.array([0.5, 0.6, 0.2, 0.5], dtype=np.float32)
_BOX_SCALE: Final = np.array([0.25, 0.2, 0.08, 0.25], dtype=np.float32)


@cache
def thing_vectors() -> NDArray[np.float32]:
    """The vectors of all THINGS, (things, VECTOR), with a mean square of about 1."""
    vectors: NDArray[np.float32] = load_file(WORDS_FOLDER / "vectors.safetensors")["things"].astype(np.float32)
    return vectors


def writable(text: str) -> str:
    """A text as it is written: in capitals, without what the alphabet lacks, cut to MAX_LETTERS."""
    return "".join(letter for letter in " ".join(text.upper().split()) if letter in ALPHABET)[:MAX_LETTERS].strip()


def encode(scene: Scene) -> NDArray[np.float32]:
    """A scene as a float32 array of shape (NUM_SLOTS, SLOT_DIM)."""
    slots = np.zeros((NUM_SLOTS, SLOT_DIM), dtype=np.float32)
    slots[:, 0] = -1.0
    slots[0, 0] = slots[0, 1 + BACKGROUNDS.index(scene.background)] = 1.0
    for row, item in enumerate(scene.items[:MAX_THINGS], start=1):
        slots[row] = encode_item(item)
    for row, letter in zip(slots[1 + MAX_THINGS :], scene.text, strict=False):
        row[0] = row[1 + ALPHABET.index(letter)] = 1.0
    return slots


def encode_item(item: Item) -> NDArray[np.float32]:
    """One thing as a slot, (SLOT_DIM,)."""
    row = np.zeros(SLOT_DIM, dtype=np.float32)
    row[0] = row[_LOOK.start + item.look] = 1.0
    row[1 : 1 + VECTOR] = thing_vectors()[item.thing]
    row[_BOX] = (np.array([item.x, item.y, item.size, item.depth], dtype=np.float32) - _BOX_MEAN) / _BOX_SCALE
    row[_LETTERED] = 1.0 if item.lettered else -1.0
    return row


def decode(slots: NDArray[np.float32]) -> tuple[list[Item], str, str]:
    """The things, in slot order, the background and the text that slots of shape (NUM_SLOTS, SLOT_DIM) stand for."""
    background = BACKGROUNDS[int(slots[0, 1 : 1 + len(BACKGROUNDS)].argmax())]
    rows = slots[1 : 1 + MAX_THINGS]
    things = nearest_things(rows[:, 1 : 1 + VECTOR])
    items = [_item(row, int(thing)) for row, thing in zip(rows, things, strict=True) if row[0] > 0]
    letters = slots[1 + MAX_THINGS :]
    marks = letters[:, 1 : 1 + len(ALPHABET)].argmax(axis=1)
    text = "".join(ALPHABET[k] for k, row in zip(marks.tolist(), letters, strict=True) if row[0] > 0)
    return items, background, " ".join(text.split())


def nearest_things(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The indices of the things whose vectors are nearest to some, (n, VECTOR)."""
    vocabulary = thing_vectors()
    distances = (vocabulary**2).sum(axis=1)[None, :] - 2 * vectors @ vocabulary.T
    return np.asarray(distances.argmin(axis=1))


def _item(row: NDArray[np.float32], thing: int) -> Item:
    x, y, size, depth = (row[_BOX] * _BOX_SCALE + _BOX_MEAN).tolist()
    return Item(
        thing=thing,
        look=int(row[_LOOK].argmax()),
        x=min(max(x, 0.0), 1.0),
        y=min(max(y, 0.0), 1.0),
        size=min(max(size, 0.06), 0.55),
        depth=min(max(depth, 0.0), 1.0),
        lettered=bool(row[_LETTERED] > 0),
    )
