"""Wishes laid out: what the relations mean, and where things stand so that they hold and look at home.

Coordinates are fractions of the canvas, x to the right, y down, both in [0, 1]. ``size`` is the side of a thing's
bounding square. ``depth`` is 0 for the far background and 1 for the near foreground. The ground begins at ``HORIZON``:
what stands on it stands the lower and the larger the nearer it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import atan2, ceil, hypot, pi, sqrt
from typing import Final

import numpy as np

from gems.models.open.things import BACKGROUNDS, INDEX, LOOK_NAMES, MAX_COUNT, PLACES, RELATIONS, SIZES, THINGS
from gems.models.open.wish import Group, Relation, Wish

__all__ = [
    "CARRIERS",
    "HORIZON",
    "MAX_THINGS",
    "Item",
    "Scene",
    "holds_place",
    "layout",
    "place_of",
    "relation_margin",
    "sample_wish",
    "strangeness",
]

MAX_THINGS: Final = 24
HORIZON: Final = 0.56


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a scene: its class and look, where it stands, and whether the scene's text is written on it."""

    thing: int
    look: int
    x: float
    y: float
    size: float
    depth: float
    lettered: bool = False

    @property
    def top(self) -> float:
        """The upper edge of its square."""
        return self.y - self.size / 2

    @property
    def bottom(self) -> float:
        """The lower edge of its square."""
        return self.y + self.size / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A wish laid out. ``members[i]`` are group i's items by x, ``arrangements[i]`` is the name of their pattern."""

    wish: Wish
    members: tuple[tuple[Item, ...], ...]
    arrangements: tuple[str, ...]
    background: str
    text: str = ""

    @property
    def items(self) -> list[Item]:
        """All items, by group and then by x."""
        return [item for group in self.members for item in group]


# --- what the relations mean ----------------------------------------------------------------------------------------

Items = Sequence[Item]


def relation_margin(name: str, a: Items, b: Items, c: Items = ()) -> float:
    """How clearly "a NAME b" ("a between b and c") holds between non-empty groups; positive if it holds.

    Left, right, over and under compare the centres of groups; in front and behind compare their mean depth. The others
    are about each thing of ``a``: it is "next to" the nearest of ``b``, stands "on" it, "in" it, and so on.

    Raises:
        ValueError: There is no such relation.
    """
    if name in _MIRRORED:
        return relation_margin(_MIRRORED[name], b, a)
    if name in _CENTRES:
        return _CENTRES[name](_centre(a), _centre(b))
    if name in _PAIRS:
        return sum(max(_PAIRS[name](i, j) for j in b) for i in a) / len(a)
    match name:
        case "between":
            return _between(_centre(a), _centre(b), _centre(c)) if c else -1.0
        case "around":
            return _around(a, _centre(b)) if len(a) > 2 else relation_margin("next to", a, b)
        case "jumping over" | "flying over":
            gap = min(i.top for i in b) - max(i.bottom for i in a)
            return min(_above(_centre(a), _centre(b)), gap + 0.02)
        case "playing with":
            return 0.2 * (1.5 - _mean_gap(a, b))
    raise ValueError(f"unknown relation {name!r}; choose from: {', '.join(RELATIONS)}")


_Centre = tuple[float, float, float]
_MIRRORED: Final = {"to the right of": "to the left of", "behind": "in front of", "under": "above"}


def _centre(items: Items) -> _Centre:
    n = len(items)
    return sum(i.x for i in items) / n, sum(i.y for i in items) / n, sum(i.depth for i in items) / n


def _above(a: _Centre, b: _Centre) -> float:
    return min(b[1] - a[1] - 0.08, 0.22 - abs(a[0] - b[0]))


def _chasing(a: _Centre, b: _Centre) -> float:
    return min(a[0] - b[0] - 0.08, 0.15 - abs(a[1] - b[1]))  # the drawings face left


_CENTRES: Final[dict[str, Callable[[_Centre, _Centre], float]]] = {
    "to the left of": lambda a, b: b[0] - a[0] - 0.08,
    "in front of": lambda a, b: a[2] - b[2] - 0.15,
    "above": _above,
    "chasing": _chasing,
}


def _beside(i: Item, j: Item) -> float:
    gap = abs(i.x - j.x) - (i.size + j.size) / 2
    return min(0.14 - gap, 0.2 - abs(i.bottom - j.bottom), abs(i.x - j.x) - 0.05)


def _standing_on(i: Item, j: Item) -> float:
    """Its bottom lies in the upper part of the other's square, and its middle above the other's."""
    sunk = i.bottom - j.top
    return min(sunk + 0.02, 0.6 * j.size - sunk, 0.5 * j.size - abs(i.x - j.x) + 0.02, j.y - i.y - 0.02)


def _holding(i: Item, j: Item) -> float:
    reach = 0.62 * (i.size + j.size) / 2 + 0.03
    return min(reach - hypot(i.x - j.x, i.y - j.y), j.depth - i.depth + 0.02)


def _inside(i: Item, j: Item) -> float:
    return min(0.42 * j.size - max(abs(i.x - j.x), abs(i.y - j.y)), i.depth - j.depth + 0.02, 0.9 * j.size - i.size)


_PAIRS: Final[dict[str, Callable[[Item, Item], float]]] = {
    "next to": _beside,
    "on": _standing_on,
    "holding": _holding,
    "in": _inside,
}


def _between(a: _Centre, b: _Centre, c: _Centre) -> float:
    low, high = sorted((b[0], c[0]))
    return min(a[0] - low - 0.05, high - a[0] - 0.05, 0.25 - abs(a[1] - (b[1] + c[1]) / 2))


def _around(a: Items, centre: _Centre) -> float:
    """By the widest angle without a thing, seen from the centre: at most two thirds of a circle."""
    angles = sorted(atan2(i.y - centre[1], i.x - centre[0]) for i in a)
    gaps = [q - p for p, q in zip(angles, [*angles[1:], angles[0] + 2 * pi], strict=True)]
    return 0.1 * (4 * pi / 3 - max(gaps))


def _mean_gap(a: Items, b: Items) -> float:
    """Mean distance from things of the smaller group to the nearest of the other, in units of the pair's mean size."""
    smaller, larger = (a, b) if len(a) <= len(b) else (b, a)
    return sum(min(hypot(i.x - j.x, i.y - j.y) / ((i.size + j.size) / 2) for j in larger) for i in smaller) / len(
        smaller
    )


def place_of(items: Items) -> str:
    """The part of the canvas, one of the first nine PLACES, that has the centre of the items."""
    x, y, _ = _centre(items)
    return PLACES[3 * int(np.digitize(y, (0.36, 0.64))) + int(np.digitize(x, (0.36, 0.64)))]


def holds_place(place: str, items: Items) -> bool:
    """Whether non-empty items stand in a place: "left" is anywhere on the left, "top left" the corner alone."""
    x, y, depth = _centre(items)
    column, row = int(np.digitize(x, (0.4, 0.6))), int(np.digitize(y, (0.4, 0.6)))
    match place:
        case "background":
            return depth < 0.45
        case "foreground":
            return depth > 0.55
        case "corner":
            return column != 1 and row != 1
        case "middle":
            return abs(x - 0.5) < 0.18 and abs(y - 0.5) < 0.22
    wanted_column = 0 if "left" in place else 2 if "right" in place else None
    wanted_row = 0 if "top" in place else 2 if "bottom" in place else None
    return wanted_column in (None, column) and wanted_row in (None, row)


# --- layout ---------------------------------------------------------------------------------------------------------

_MARGIN: Final = 0.03
"""Laid-out scenes satisfy every relation by at least this margin, so that their captions are plainly true."""

_MAX_OVERLAP: Final = 0.3
"""The largest share of the smaller square that two things have in common, if no relation brings them together."""

_STACKED: Final = ("on", "holding", "in")

_ATTACHED: Final = {"on": 3, "holding": 2, "in": 9}
"""How many things one other can carry."""


def layout(wish: Wish, rng: np.random.Generator, tries: int = 12) -> Scene:
    """Lay a wish out at random so that all of it holds.

    Groups are placed one after another, each at the best of some random places: where its relations hold, where it
    covers nothing, and where such things are at home. A wish that is too much for the canvas loses relations.
    """
    for attempt in range(tries):
        if scene := _Stage(wish, rng, crowd=0.94**attempt).scene():
            return scene
    if wish.relations:
        return layout(replace(wish, relations=wish.relations[:-1]), rng, tries)
    plain = tuple(replace(group, place="", size="") for group in wish.groups)
    if plain != wish.groups:
        return layout(replace(wish, groups=plain), rng, tries)
    return layout(wish, rng, tries + 4)


class _Stage:
    """One try to lay a wish out."""

    def __init__(self, wish: Wish, rng: np.random.Generator, crowd: float) -> None:
        self.wish, self.rng = wish, rng
        self.counts = [self._count(group) for group in wish.groups]
        self.sizes = self._sizes(crowd)
        self.placed: dict[int, list[Item]] = {}
        self.arrangements = [""] * len(wish.groups)

    def _count(self, group: Group) -> int:
        return min(MAX_COUNT, group.count + int(self.rng.integers(0, 3))) if group.more else group.count

    def scene(self) -> Scene | None:
        """The scene; None if a group found no place."""
        for index in self._order():
            if not self._place(index):
                return None
        members = tuple(tuple(sorted(self.placed[k], key=lambda i: i.x)) for k in range(len(self.wish.groups)))
        text = next((group.text for group in self.wish.groups if group.text), "")
        background = self.wish.background or str(self.rng.choice(BACKGROUNDS, p=_COMMON))
        return Scene(self.wish, members, tuple(self.arrangements), background, text)

    def _order(self) -> list[int]:
        """Those that others relate to come first."""
        targets = [index for r in self.wish.relations for index in (r.b, r.c) if index >= 0]
        return sorted(
            range(len(self.counts)), key=lambda k: (-targets.count(k), -THINGS[self.wish.groups[k].thing].size)
        )

    def _sizes(self, crowd: float) -> list[float]:
        """The side of each group's things: by their nature, by how many there are, and by what is asked."""
        room = 0.62 * crowd
        natural = [THINGS[group.thing].size ** 0.55 for group in self.wish.groups]
        share = sum(n * s * s for n, s in zip(self.counts, natural, strict=True))
        unit = min(0.33, room * (0.9 / share) ** 0.5) * self.rng.uniform(0.85, 1.05)
        sizes = [float(np.clip(unit * s, 0.085, 0.42)) for s in natural]
        for k, group in enumerate(self.wish.groups):
            if group.size:
                low, high = _SIZE_RANGES[group.size]
                sizes[k] = float(self.rng.uniform(low, high))
            if group.text:
                sizes[k] = max(sizes[k], 0.34)
        for relation in self.wish.relations:
            if relation.name == "in":
                in_row = ceil(sqrt(self.counts[relation.a] / self.counts[relation.b]))
                sizes[relation.b] = min(0.5, max(sizes[relation.b], 1.5 * min(2, in_row) * sizes[relation.a]))
                sizes[relation.a] = max(0.065, min(sizes[relation.a], 0.62 / in_row**0.6 * sizes[relation.b]))
            if relation.name == "holding" and not self.wish.groups[relation.b].size:
                sizes[relation.b] = max(0.065, min(sizes[relation.b], 0.6 * sizes[relation.a]))
        return sizes

    def _place(self, index: int) -> bool:
        best: tuple[float, str, list[Item]] | None = None
        for _ in range(_CANDIDATES):
            name, items = self._candidate(index)
            score = self._score(index, items)
            if score is not None and (best is None or score > best[0]):
                best = (score, name, items)
        if best is None:
            return False
        _, self.arrangements[index], self.placed[index] = best
        return True

    def _candidate(self, index: int) -> tuple[str, list[Item]]:
        """Random places for a group's things: near those that it relates to, else anywhere."""
        group, n, size, rng = self.wish.groups[index], self.counts[index], self.sizes[index], self.rng
        partner = self._partner(index)
        if partner and partner[0] in _STACKED and n <= _ATTACHED[partner[0]] * len(partner[1]):
            return "", self._attached(index, partner[0], partner[1])
        name, spots = _pattern(n, size, rng)
        depth = self._depth(index)
        x, y = self._anchor(index, partner, depth)
        grow = 1 + 0.35 * (depth - 0.5) if not group.size else 1.0
        jitter = 0.05 * size
        return name, [
            Item(
                group.thing,
                group.look,
                x + px + rng.uniform(-jitter, jitter),
                y + py + rng.uniform(-jitter, jitter),
                size * grow * rng.uniform(0.96, 1.04),
                float(np.clip(depth + 0.15 * py + rng.uniform(-0.02, 0.02), 0, 1)),
                bool(group.text),
            )
            for px, py in spots
        ]

    def _partner(self, index: int) -> tuple[str, list[Item], bool] | None:
        """A relation to things that are placed already: its name, they, and whether the group is its subject."""
        for relation in self.wish.relations:
            if relation.a == index and relation.b in self.placed:
                return relation.name, self.placed[relation.b], True
            if relation.b == index and relation.a in self.placed:
                return relation.name, self.placed[relation.a], False
        return None

    def _depth(self, index: int) -> float:
        group = self.wish.groups[index]
        if group.place == "background":
            return float(self.rng.uniform(0.1, 0.35))
        if group.place == "foreground":
            return float(self.rng.uniform(0.65, 0.95))
        for relation in self.wish.relations:
            if relation.name in ("in front of", "behind") and index in (relation.a, relation.b):
                nearer = (relation.name == "in front of") == (relation.a == index)
                return float(self.rng.uniform(0.62, 0.95) if nearer else self.rng.uniform(0.1, 0.38))
        return float(self.rng.uniform(0.25, 0.8))

    def _anchor(self, index: int, partner: tuple[str, list[Item], bool] | None, depth: float) -> tuple[float, float]:
        thing, rng, size = THINGS[self.wish.groups[index].thing], self.rng, self.sizes[index]
        x = float(rng.uniform(0.12, 0.88))
        floor = HORIZON + 0.06 + 0.34 * depth
        if partner is not None:
            name, items, is_subject = partner
            px, py, _ = _centre(items)
            name = name if is_subject else _INVERSE.get(name, name)
            dx, dy = _OFFSETS.get(name, (0.0, 0.0))
            spread = 0.5 * (size + max(i.size for i in items))
            x = px + (dx * spread if dx else float(rng.uniform(-0.16, 0.16))) + float(rng.uniform(-0.05, 0.05))
            if dy:
                return x, py + dy * spread + float(rng.uniform(-0.06, 0.06))
            if name in ("next to", "chasing", "between", "to the left of", "to the right of") and rng.random() < 0.8:
                return x if dx or name == "between" else px + float(rng.choice((-1, 1))) * spread, max(
                    i.bottom for i in items
                ) - size / 2 + float(rng.uniform(-0.03, 0.03))
            if name in ("playing with", "around"):
                return px + float(rng.uniform(-0.05, 0.05)), py + float(rng.uniform(-0.05, 0.05))
        match thing.home:
            case "sky":
                y = float(rng.uniform(0.1, 0.32))
            case "air":
                y = float(rng.uniform(0.14, 0.62))
            case _:
                y = floor - size / 2
        if rng.random() < 0.15:
            y = float(rng.uniform(0.15, 0.85))
        if self.wish.groups[index].place not in ("", "background", "foreground"):
            x, y = _point_in(self.wish.groups[index].place, rng, y)
        return x, y

    def _attached(self, index: int, name: str, items: list[Item]) -> list[Item]:
        """Things that stand on, are in or are held by others, which they are spread over; or those others of them."""
        group, rng, size = self.wish.groups[index], self.rng, self.sizes[index]
        is_subject = any(r.a == index for r in self.wish.relations if r.name == name)
        rounds = -(-self.counts[index] // len(items))
        slots = [(item, k) for item in items for k in range(rounds)][: self.counts[index]]
        result = []
        columns = ceil(sqrt(rounds))
        for item, k in slots:
            row = k // columns
            column = k % columns - (min(columns, rounds - row * columns) - 1) / 2
            dx, dy = 0.8 * size * (k - (rounds - 1) / 2) + float(rng.uniform(-0.06, 0.06)) * item.size, 0.0
            depth = item.depth
            if name == "on":
                reach = (size + item.size) / 2
                dy = -(reach - float(rng.uniform(0.05, 0.3)) * item.size) if is_subject else reach - 0.15 * size
                depth += 0.03 if is_subject else -0.03
            elif name == "in":
                rows = ceil(rounds / columns)
                dx = 0.9 * size * column + float(rng.uniform(-0.03, 0.03)) * item.size
                dy = 0.9 * size * (row - (rows - 1) / 2) + float(rng.uniform(-0.03, 0.06)) * item.size
                depth += 0.04 if is_subject else -0.04
            else:
                swing = float(rng.choice((-1, 1))) * float(rng.uniform(0.3, 0.5)) * (size + item.size) / 2
                dx, dy = dx + swing, float(rng.uniform(-0.05, 0.25)) * min(size, item.size)
                depth += -0.03 if is_subject else 0.03
            result.append(
                Item(
                    group.thing,
                    group.look,
                    item.x + dx,
                    item.y + dy,
                    size * float(rng.uniform(0.97, 1.03)),
                    float(np.clip(depth, 0, 1)),
                    bool(group.text),
                )
            )
        return result

    def _score(self, index: int, items: list[Item]) -> float | None:
        """How good places are; None if a thing leaves the canvas or hides another, or if something asked for fails."""
        group = self.wish.groups[index]
        for i in items:
            reach = 0.45 * i.size
            if not (reach < i.x < 1 - reach and reach < i.y < 1 - reach):
                return None
        if group.place and not holds_place(group.place, items):
            return None
        together, before = set[int](), set[int]()
        least = 1.0
        for relation in self.wish.relations:
            members = [
                self.placed.get(k) if k != index else items for k in (relation.a, relation.b, relation.c) if k >= 0
            ]
            if index not in (relation.a, relation.b, relation.c):
                continue
            if relation.name in (*_STACKED, "in front of", "behind", "around", "playing with"):
                together |= {relation.a, relation.b}
            if relation.name in ("holding", "in"):
                before |= {relation.a, relation.b}
            if all(m is not None for m in members):
                margin = relation_margin(relation.name, *[m for m in members if m is not None])
                if margin < min(_MARGIN, _LEAST_MARGIN.get(relation.name, 1.0)):
                    return None
                least = min(least, margin)
        overlap = _overlap(items, items)
        neighbours = [i for k, placed in self.placed.items() if k not in together for i in placed]
        overlap = max(overlap, _overlap(items, neighbours))
        near = [i for k, placed in self.placed.items() if k in together - before for i in placed]
        behind = [i for k, placed in self.placed.items() if k in before for i in placed]
        if overlap > _MAX_OVERLAP or max(_overlap(items, near), _hidden(items, behind)) > 0.62:
            return None
        return (
            min(least, 0.1)
            - 0.6 * overlap
            - 0.5 * strangeness(self.wish, index, items)
            + 0.08 * float(self.rng.random())
        )


def strangeness(wish: Wish, index: int, items: Items) -> float:
    """How far a group's things are from where such things are at home: on the ground they touch it, or above it."""
    home = THINGS[wish.groups[index].thing].home
    if any(r.name in _LIFTING and r.a == index for r in wish.relations):
        return 0.0
    if any(r.name == "holding" and r.b == index for r in wish.relations):
        return 0.0
    if home == "sky":
        return max(0.0, max(i.bottom for i in items) - 0.5)
    if home == "air":
        return max(0.0, max(i.bottom for i in items) - 0.8)
    lowest = [abs(i.bottom - (HORIZON + 0.06 + 0.34 * i.depth)) for i in items]
    return sum(lowest) / len(lowest)


_LIFTING: Final = ("on", "in", "above", "jumping over", "flying over")
"""Relations that take their first group off the ground."""

_CANDIDATES: Final = 28

_COMMON: Final = np.array([0.26, 0.1, 0.1, 0.07, 0.07, 0.1, 0.03, 0.05, 0.08, 0.08, 0.02, 0.04])
"""How often a background comes that nobody asked for."""

_SIZE_RANGES: Final = {"tiny": (0.07, 0.095), "small": (0.11, 0.15), "big": (0.29, 0.34), "huge": (0.395, 0.46)}
"""Inside the ranges of SIZES, so that a size is plainly so."""

_LEAST_MARGIN: Final = {"next to": 0.02, "on": 0.015, "holding": 0.01, "in": 0.01, "between": 0.02}

_INVERSE: Final = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "in front of": "behind",
    "behind": "in front of",
    "above": "under",
    "under": "above",
    "jumping over": "beneath",
    "flying over": "beneath",
    "chasing": "chased by",
}
_OFFSETS: Final = {
    "to the left of": (-1.25, 0.0),
    "to the right of": (1.25, 0.0),
    "above": (0.0, -1.1),
    "under": (0.0, 1.1),
    "jumping over": (0.0, -1.3),
    "flying over": (0.0, -1.5),
    "beneath": (0.0, 1.4),
    "chasing": (1.3, 0.0),
    "chased by": (-1.3, 0.0),
    "behind": (0.0, -0.45),
    "in front of": (0.0, 0.45),
}
"""Where a group is tried first, seen from its partner, in units of their mean size."""


def _overlap(a: Sequence[Item], b: Sequence[Item]) -> float:
    """The largest share of the smaller square that a thing of ``a`` and another of ``b`` have in common."""
    worst = 0.0
    for i in a:
        for j in b:
            reach = (i.size + j.size) / 2
            dx, dy = reach - abs(i.x - j.x), reach - abs(i.y - j.y)
            if i is not j and dx > 0 and dy > 0:
                worst = max(worst, min(1.0, dx * dy / min(i.size, j.size) ** 2))
    return worst


def _hidden(a: Sequence[Item], b: Sequence[Item]) -> float:
    """The largest share of the farther of two squares, one of ``a`` and one of ``b``, that the nearer one covers."""
    worst = 0.0
    for i in a:
        for j in b:
            nearer, farther = (i, j) if i.depth > j.depth else (j, i)
            worst = max(worst, _overlap([i], [j]) * min(1.0, nearer.size / farther.size) ** 2)
    return worst


def _point_in(place: str, rng: np.random.Generator, y: float) -> tuple[float, float]:
    if place == "corner":
        place = str(rng.choice(("top left", "top right", "bottom left", "bottom right")))
    x = {"left": 0.22, "right": 0.78}.get(place.split()[-1], 0.5 if place == "middle" else float(rng.uniform(0.2, 0.8)))
    height = 0.2 if "top" in place else 0.8 if "bottom" in place else 0.52 if place == "middle" else y
    return x + float(rng.uniform(-0.08, 0.08)), height + float(rng.uniform(-0.07, 0.07))


def _pattern(n: int, size: float, rng: np.random.Generator) -> tuple[str, list[tuple[float, float]]]:
    """An arrangement for n things of one size: its name, and spots around (0, 0)."""
    step = size * float(rng.uniform(1.02, 1.25))
    if n == 1:
        return "", [(0.0, 0.0)]
    half = -(-n // 2)
    names = [
        name for name, width in (("in a row", n), ("in two rows", half), ("in a column", 1)) if width * step < 0.98
    ]
    if n >= 5:
        names += ["in a ring"]
    if n * step > 0.9 and n < 4:
        names += ["in a column"]
    weights = np.array(
        [{"in a row": 3.0, "in two rows": 2.0 * (n > 3), "in a column": 0.5, "in a ring": 0.6}[k] for k in names]
    )
    name = str(rng.choice(names, p=weights / weights.sum())) if weights.sum() else "in a row"
    if name == "in a ring":
        radius, turn = step / (2 * np.sin(np.pi / n)), rng.uniform(0, 2 * np.pi)
        angles = turn + 2 * np.pi * np.arange(n) / n
        return name, [(float(radius * np.cos(t)), float(radius * np.sin(t))) for t in angles]
    columns = {"in a row": n, "in two rows": half, "in a column": 1}[name]
    rows = -(-n // columns)
    spots = []
    for k in range(n):
        row, column = divmod(k, columns)
        in_row = min(columns, n - row * columns)
        spots.append(((column - (in_row - 1) / 2) * step, (row - (rows - 1) / 2) * step * 0.9))
    return name, spots


# --- sampling -------------------------------------------------------------------------------------------------------

CARRIERS: Final = ("placard", "t-shirt", "notebook", "open book", "envelope", "gift box", "scroll", "blackboard")
"""Things that a text is usually written on."""


def sample_wish(
    rng: np.random.Generator,
    things: Sequence[int] | None = None,
    letters: Callable[[np.random.Generator], str] | None = None,
) -> Wish:
    """A random wish of one to four groups.

    Args:
        rng: The source of chance.
        things: The things to choose from, all by default.
        letters: Makes a text, for a wish with one; without it there are none.
    """
    pool = np.array(things if things is not None else range(len(THINGS)))
    k = int(rng.choice([1, 2, 3, 4], p=[0.22, 0.42, 0.28, 0.08]))
    text = letters(rng) if letters and rng.random() < 0.12 else ""
    picks = [int(t) for t in rng.choice(pool, size=k + 2, replace=False)]
    groups: list[Group] = []
    for t in picks[:k]:
        count = (
            1 if rng.random() < 0.5 else min(int(rng.integers(2, MAX_COUNT + 1)), int(rng.integers(2, MAX_COUNT + 1)))
        )
        size = str(rng.choice(list(SIZES))) if rng.random() < 0.12 and count <= 3 else ""
        if size in ("big", "huge") and (count > 2 or any(g.size for g in groups)):
            size = ""
        place = ""
        if rng.random() < 0.1:
            place = str(rng.choice([*PLACES, "background", "foreground"]))
        look = int(rng.integers(1, len(LOOK_NAMES))) if rng.random() < 0.5 else 0
        groups.append(Group(t, count, False, look, size, place))
    if text:
        carrier = INDEX[str(rng.choice(CARRIERS))]
        if all(g.thing != carrier for g in groups):
            groups[0] = Group(carrier, 1, False, groups[0].look if rng.random() < 0.5 else 0, "", "", text)
    while sum(g.count for g in groups) > MAX_THINGS:
        big = max(range(len(groups)), key=lambda i: groups[i].count)
        groups[big] = replace(groups[big], count=groups[big].count - 3)
    relations = _sample_relations(groups, rng)
    background = str(rng.choice(BACKGROUNDS)) if rng.random() < 0.35 else ""
    absent = tuple(picks[k : k + 1]) if rng.random() < 0.12 else ()
    return Wish(tuple(groups), relations, background, absent)


def _sample_relations(groups: Sequence[Group], rng: np.random.Generator) -> tuple[Relation, ...]:
    relations: list[Relation] = []
    if len(groups) >= 3 and rng.random() < 0.12 and sum(g.count for g in groups[:3]) <= 8:
        relations.append(Relation("between", 0, 1, 2))
    for i in range(len(groups) - 1):
        if rng.random() < 0.5 and not relations:
            name = str(rng.choice(RELATIONS, p=_RELATION_SHARES))
            a, b = groups[i], groups[i + 1]
            if name in _STACKED and (a.count > 2 * b.count or a.count * b.count > 6):
                name = "next to"
            if name == "holding" and b.count > a.count:
                name = "next to"
            if name == "around" and (a.count < 3 or b.count > 2):
                name = "next to"
            if name in ("in", "on", "holding") and (a.place or b.place or a.text or b.text):
                name = "to the left of"
            relations.append(Relation(name, i, i + 1))
        elif relations and rng.random() < 0.35 and relations[-1].name != "between":
            name = str(rng.choice(("to the left of", "to the right of", "next to", "behind", "in front of", "under")))
            relations.append(Relation(name, i, i + 1))
    return tuple(relations)


_RELATION_SHARES: Final = np.array(
    [0.09, 0.09, 0.09, 0.09, 0.08, 0.1, 0.1, 0.0, 0.03, 0.05, 0.05, 0.04, 0.1, 0.04, 0.03, 0.02]
)
