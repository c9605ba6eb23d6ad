"""Instructions for writing the open generator's prompts, for chat models that do not know it."""

from __future__ import annotations

from typing import Final

from gems.models.open.draft_wording import BACKGROUND_PHRASES, NUMBERS
from gems.models.open.things import ARRANGEMENTS, LOOK_NAMES, SIZES
from gems.models.open.tokens import MAX_TOKENS, TOKENS, tokens_of_prompt
from gems.models.open.wish_reading import language_of_prompt

__all__ = ["GUIDE", "objection"]


def objection(prompt: str) -> str:
    """Why the generator cannot draw a prompt; empty if it can."""
    words = [TOKENS[number] for number, _ in tokens_of_prompt(prompt, language_of_prompt(prompt))]
    if len(words) >= MAX_TOKENS:
        return f"a prompt of the open generator has at most {MAX_TOKENS - 1} words that it knows"
    if not any(word.startswith(("[THING]", "background")) for word in words):
        return "the prompt names nothing that the open generator can draw"
    return ""


GUIDE: Final = f"""\
It draws some 800 everyday things (animals, food, plants, vehicles, buildings, tools, furniture, clothes, instruments, \
people, weather) by their plain English names, and understands these words; others are lost on it:
- looks: {", ".join(LOOK_NAMES[1:])}
- sizes: {", ".join(SIZES)}
- numbers: {", ".join(NUMBERS)}
- arrangements of two or more: {", ".join(ARRANGEMENTS)}
- places: on the left, on the right, in the middle, at the top, at the bottom, at the top left, at the top right, \
at the bottom left, at the bottom right
- depth: in the background, in the foreground
- backgrounds: {", ".join(BACKGROUND_PHRASES.values())}
- one text of up to 16 capital letters: a sign that says "HELLO"
It draws best from one clause for each kind of thing, with semicolons between them: NUMBER SIZE LOOK THING \
ARRANGEMENT PLACE DEPTH, and the background last. Things that relate to each other are joined by the relation instead \
of a semicolon; say where they stand all the same. Never name what must not be there: it draws what it reads.
Examples, wish and prompt:
six red dogs to the right of a chair = six red dogs in two rows on the right to the right of one chair on the left
a bear jumping over four metal clocks at night = one bear at the top jumping over four metal clocks in a row at the \
bottom; at night
a huge turtle behind a tree, without birds = one huge turtle in the middle in the background behind one tree at the \
bottom in the foreground
a cat on a couch with a sign that says "nap time" = one cat in the middle on one couch in the middle; one sign that \
says "NAP TIME" on the right; in a room"""
