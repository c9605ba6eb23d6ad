"""What the pocket models mean by a scene: groups of things, the slots that hold them, and what the relations mean.

A *spec* is what a prompt asks for: groups, and the relations between neighbouring groups. A *scene* is a spec laid out:
every thing has a place, a size and a depth. The generator learns to turn words into slots; the decoder draws slots as
pixels; the vision model reads things back from pixels. All of them share the definitions in this file.

Coordinates are fractions of the canvas, x to the right, y down, both in [0, 1]. ``size`` is the side of a thing's
bounding square. ``depth`` is 0 for the far background and 1 for the near foreground.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gems.models.pocket.spec import Group, SceneSpec
from gems.models.pocket.vocabulary import (
    ATTRIBUTES,
    MAX_COUNT,
    OBJECTS,
    POSITIONS,
    RELATIONS,
    VERBS,
)

__all__ = [
    "NUM_SLOTS",
    "SLOT_DIM",
    "Group",
    "Item",
    "Scene",
    "SceneSpec",
    "decode_slots",
    "encode_slots",
    "layout",
    "relation_margin",
    "sample_spec",
]

NUM_SLOTS: Final = 24
SLOT_DIM: Final = 1 + len(OBJECTS) + len(ATTRIBUTES) + 4
"""Presence, object scores, attribute scores, then x, y, size and depth: 64 numbers per slot."""

_OBJECT: Final = slice(1, 1 + len(OBJECTS))
_ATTRIBUTE: Final = slice(_OBJECT.stop, _OBJECT.stop + len(ATTRIBUTES))
_BOX: Final = slice(_ATTRIBUTE.stop, SLOT_DIM)
_BOX_MEAN: Final = np.array([0.5, 0.5, 0.2, 0.5], dtype=np.float32)
_BOX_SCALE: Final = np.array([0.25, 0.25, 0.08, 0.25], dtype=np.float32)
"""Mean and spread of x, y, size and depth in laid-out scenes; they give slots about unit variance."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a scene: its class indices and where it stands."""

    object: int
    attribute: int
    x: float
    y: float
    size: float
    depth: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A spec laid out. ``members[i]`` holds group i's items, ordered by x; ``arrangements[i]`` names their pattern."""

    spec: SceneSpec
    members: tuple[tuple[Item, ...], ...]
    arrangements: tuple[str, ...]

    @property
    def items(self) -> list[Item]:
        """All items in slot order: by group, then by x."""
        return [item for group in self.members for item in group]


# --- slots ----------------------------------------------------------------------------------------------------------


def encode_slots(items: Sequence[Item]) -> NDArray[np.float32]:
    """Items as a float32 array of shape (NUM_SLOTS, SLOT_DIM). Unused slots have presence -1 and zeros elsewhere."""
    if len(items) > NUM_SLOTS:
        raise ValueError(f"{len(items)} items do not fit into {NUM_SLOTS} slots")
    slots = np.zeros((NUM_SLOTS, SLOT_DIM), dtype=np.float32)
    slots[:, 0] = -1.0
    for slot, item in zip(slots, items, strict=False):
        slot[0] = 1.0
        slot[_OBJECT.start + item.object] = 1.0
        slot[_ATTRIBUTE.start + item.attribute] = 1.0
        slot[_BOX] = (np.array([item.x, item.y, item.size, item.depth], dtype=np.float32) - _BOX_MEAN) / _BOX_SCALE
    return slots


def decode_slots(slots: NDArray[np.float32]) -> list[Item]:
    """The items of a slot array of shape (NUM_SLOTS, SLOT_DIM): slots with presence above zero, in slot order."""
    items = []
    for slot in slots[slots[:, 0] > 0]:
        x, y, size, depth = (slot[_BOX] * _BOX_SCALE + _BOX_MEAN).tolist()
        items.append(
            Item(
                object=int(slot[_OBJECT].argmax()),
                attribute=int(slot[_ATTRIBUTE].argmax()),
                x=min(max(x, 0.0), 1.0),
                y=min(max(y, 0.0), 1.0),
                size=min(max(size, 0.06), 0.45),
                depth=min(max(depth, 0.0), 1.0),
            )
        )
    return items


# --- what the relations mean ----------------------------------------------------------------------------------------


def relation_margin(relation: str, a: Sequence[Item], b: Sequence[Item]) -> float:
    """How clearly "a RELATION b" holds between two non-empty groups, in canvas units; positive if it holds.

    Left/right and over/under compare group centres; in front/behind compare mean depth. ``chasing`` means "to the right
    of, at the same height" (the drawings face left); ``jumping over`` means "above, with a gap"; ``playing with`` means
    "mingled": each thing in the smaller group has one of the other group beside it.
    """
    if relation in _MIRRORED:
        return relation_margin(_MIRRORED[relation], b, a)
    ax, ay, ad = _centre(a)
    bx, by, bd = _centre(b)
    above = min(by - ay - 0.08, 0.22 - abs(ax - bx))
    match relation:
        case "to the left of":
            return bx - ax - 0.08
        case "in front of":
            return ad - bd - 0.15
        case "on top of":
            return above
        case "jumping over":
            gap = min(i.y - i.size / 2 for i in b) - max(i.y + i.size / 2 for i in a)
            return min(above, gap + 0.02)
        case "chasing":
            return min(ax - bx - 0.08, 0.15 - abs(ay - by))
        case "playing with":
            return 0.2 * (1.5 - _mean_gap(a, b))
    raise ValueError(f"unknown relation {relation!r}; choose from: {', '.join(RELATIONS)}")


_MIRRORED: Final = {"to the right of": "to the left of", "behind": "in front of", "under": "on top of"}


def _centre(items: Sequence[Item]) -> tuple[float, float, float]:
    n = len(items)
    return sum(i.x for i in items) / n, sum(i.y for i in items) / n, sum(i.depth for i in items) / n


def _mean_gap(a: Sequence[Item], b: Sequence[Item]) -> float:
    """Mean distance from things in the smaller group to the nearest in the other, in units of the pair's mean size."""

    def nearest(item: Item, candidates: Sequence[Item]) -> float:
        return min(float(np.hypot(item.x - o.x, item.y - o.y)) / ((item.size + o.size) / 2) for o in candidates)

    smaller, larger = (a, b) if len(a) <= len(b) else (b, a)
    return sum(nearest(item, larger) for item in smaller) / len(smaller)


# --- sampling -------------------------------------------------------------------------------------------------------


def sample_spec(rng: np.random.Generator, atoms: int | None = None) -> SceneSpec:
    """A random spec of one to three groups of different objects, with exactly ``atoms`` (1 to 11) if that is given."""
    while True:
        k = int(rng.choice([1, 2, 3], p=[0.12, 0.4, 0.48]))
        objects = rng.choice(len(OBJECTS), size=k, replace=False)
        groups = tuple(
            Group(
                count=1 if rng.random() < 0.4 else int(rng.integers(2, MAX_COUNT + 1)),
                attribute=int(rng.integers(1, len(ATTRIBUTES))) if rng.random() < 0.6 else 0,
                object=int(o),
            )
            for o in objects
        )
        spec = SceneSpec(groups, tuple(_sample_relation(rng) for _ in range(k - 1)))
        if atoms is None or spec.atoms == atoms:
            return spec


def _sample_relation(rng: np.random.Generator) -> str | None:
    roll = rng.random()
    if roll < 0.45:
        return None
    return str(rng.choice(POSITIONS if roll < 0.85 else VERBS))


_CELL_OFFSET: Final[dict[str, tuple[int, int]]] = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "chasing": (1, 0),
    "on top of": (0, -1),
    "jumping over": (0, -1),
    "behind": (0, -1),
    "under": (0, 1),
    "in front of": (0, 1),
}
"""The cell of group A if "A RELATION B" and B is at the origin."""

_MARGIN: Final = 0.03
"""Laid-out scenes satisfy every relation by at least this margin, so that their captions are plainly true."""


def layout(spec: SceneSpec, rng: np.random.Generator) -> Scene:
    """Lay a spec out at random so that all its relations hold.

    Groups stand in the cells of a small grid that follows from the relations; inside its cell a group forms a row, a
    column, two rows, two columns or a ring. Layouts whose relations do not hold by a clear margin are discarded, and
    later attempts deviate less from the grid.
    """
    for wander in (1.0, 1.0, 0.7, 0.7, 0.5, 0.5, 0.3, 0.3, 0.2, 0.1, *[0.0] * 40):
        scene = _try_layout(spec, rng, wander)
        if _is_clear(scene) and all(
            relation is None or relation_margin(relation, scene.members[i], scene.members[i + 1]) >= _MARGIN
            for i, relation in enumerate(spec.relations)
        ):
            return scene
    # About one spec in a hundred is over-constrained: lay out the same groups without relations.
    return layout(replace(spec, relations=tuple([None] * len(spec.relations))), rng)


_MAX_OVERLAP: Final = 0.35
"""The largest share of the smaller thing's square that two things may have in common: they overlap but never hide."""


def _is_clear(scene: Scene) -> bool:
    """Whether no thing leaves the canvas by more than a fifth of its size, and none is hidden."""
    box = np.array([(i.x, i.y, i.size) for i in scene.items])
    centre, size = box[:, :2], box[:, 2]
    if np.any(centre < 0.3 * size[:, None]) or np.any(centre > 1 - 0.3 * size[:, None]):
        return False
    reach = (size[:, None] + size[None, :]) / 2
    shared = np.clip(reach[..., None] - np.abs(centre[:, None] - centre[None, :]), 0, None).prod(axis=-1)
    shared /= np.minimum(size[:, None], size[None, :]) ** 2
    np.fill_diagonal(shared, 0)
    return bool(shared.max() <= _MAX_OVERLAP)


def _cells(spec: SceneSpec, rng: np.random.Generator) -> list[tuple[int, int]]:
    cells = [(0, 0)]
    for relation in spec.relations:
        x, y = cells[-1]
        if relation == "playing with":
            cells.append((x, y))
            continue
        if relation is None:
            dx, dy = ((-1, 0), (1, 0), (0, -1), (0, 1))[int(rng.choice(4, p=[0.35, 0.35, 0.15, 0.15]))]
        else:
            dx, dy = _CELL_OFFSET[relation]
        cell = (x - dx, y - dy)
        while cell in cells:
            cell = (cell[0] - dx, cell[1] - dy)
        cells.append(cell)
    return cells


def _try_layout(spec: SceneSpec, rng: np.random.Generator, wander: float) -> Scene:
    cells = _cells(spec, rng)
    blocks: dict[tuple[int, int], list[int]] = {}
    for g, cell in enumerate(cells):
        blocks.setdefault(cell, []).append(g)
    crowd = {cell: sum(spec.groups[g].count for g in gs) for cell, gs in blocks.items()}
    columns = _tracks({c: max(n for (x, _), n in crowd.items() if x == c) for c, _ in crowd}, rng, wander)
    rows = _tracks({r: max(n for (_, y), n in crowd.items() if y == r) for _, r in crowd}, rng, wander)

    points: dict[int, list[tuple[float, float]]] = {}
    sizes: dict[int, float] = {}
    arrangements = [""] * len(cells)
    for cell, gs in blocks.items():
        (x0, x1), (y0, y1) = columns[cell[0]], rows[cell[1]]
        arrangement, spots, size = _arrange(crowd[cell], x1 - x0, y1 - y0, rng, ring=len(gs) == 1)
        cx = x0 + (x1 - x0) / 2 + _slack(spots, 0, size, x1 - x0) * wander * rng.uniform(-0.7, 0.7)
        cy = y0 + (y1 - y0) / 2 + _slack(spots, 1, size, y1 - y0) * wander * rng.uniform(-0.7, 0.7)
        order = _interleave([spec.groups[g].count for g in gs])
        for (px, py), group_index in zip(spots, order, strict=True):
            points.setdefault(gs[group_index], []).append((cx + px, cy + py))
        for g in gs:
            sizes[g] = size
            arrangements[g] = arrangement if spec.groups[g].count > 1 and len(gs) == 1 else ""
    _bring_together(spec, points, sizes)

    depths = _depths(spec)
    members = []
    for g, group in enumerate(spec.groups):
        grow = 1 + 0.3 * (depths[g] - 0.5)
        jitter = 0.05 * sizes[g] * wander
        items = [
            Item(
                object=group.object,
                attribute=group.attribute,
                x=px + rng.uniform(-jitter, jitter),
                y=py + rng.uniform(-jitter, jitter),
                size=sizes[g] * grow * rng.uniform(0.94, 1.06),
                depth=depths[g] + rng.uniform(-0.04, 0.04),
            )
            for px, py in points[g]
        ]
        members.append(tuple(sorted(items, key=lambda i: i.x)))
    return Scene(spec, tuple(members), tuple(arrangements))


def _tracks(crowd: dict[int, int], rng: np.random.Generator, wander: float) -> dict[int, tuple[float, float]]:
    """Split [0.03, 0.97] into one interval for each column (or row), wider where more things stand."""
    keys = sorted(crowd)
    weights = np.array([crowd[k] ** 0.5 * rng.uniform(1 - 0.2 * wander, 1 + 0.2 * wander) + 0.6 for k in keys])
    edges = 0.03 + 0.94 * np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
    return {k: (float(edges[i]), float(edges[i + 1])) for i, k in enumerate(keys)}


def _arrange(
    n: int, width: float, height: float, rng: np.random.Generator, *, ring: bool
) -> tuple[str, list[tuple[float, float]], float]:
    """A pattern for n things in a width x height cell: its name, the spots around (0, 0), and the size of a thing."""
    half = -(-n // 2)
    grids = {"in a row": (n, 1), "in a column": (1, n)}
    if n >= 4:
        grids |= {"in two rows": (half, 2), "in two columns": (2, half)}
    pitch = {name: min(width / c, height / r) for name, (c, r) in grids.items()}
    if ring and n >= 5:
        pitch["in a ring"] = min(width, height) / (1 + 1 / np.sin(np.pi / n))
    best = max(pitch.values())
    name = str(rng.choice([k for k, p in pitch.items() if p >= 0.72 * best]))
    size = min(0.88 * pitch[name], 0.34) * rng.uniform(0.85, 1.0)
    step = min(pitch[name], size * rng.uniform(1.12, 1.35))
    if name == "in a ring":
        turn, radius = rng.uniform(0, 2 * np.pi), step / (2 * np.sin(np.pi / n))
        angles = turn + 2 * np.pi * np.arange(n) / n
        return name, [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles], size
    spots = []
    if name in ("in a column", "in two columns"):
        columns, rows = grids[name]
        for i in range(n):
            c, r = divmod(i, rows)
            in_column = min(rows, n - c * rows)
            spots.append(((c - (columns - 1) / 2) * step, (r - (in_column - 1) / 2) * step))
    else:
        columns, rows = grids[name]
        for i in range(n):
            r, c = divmod(i, columns)
            in_row = min(columns, n - r * columns)
            spots.append(((c - (in_row - 1) / 2) * step, (r - (rows - 1) / 2) * step))
    return name, spots, size


def _slack(spots: list[tuple[float, float]], axis: int, size: float, room: float) -> float:
    """How far a pattern can move to either side inside its cell."""
    extent = max(s[axis] for s in spots) - min(s[axis] for s in spots) + size
    return max(0.0, (room - extent) / 2)


def _interleave(counts: list[int]) -> list[int]:
    """The group of each spot in a shared cell, spread evenly: [2, 1] gives [0, 1, 0]."""
    keyed = [((i + 0.5) / n, group_index) for group_index, n in enumerate(counts) for i in range(n)]
    return [group_index for _, group_index in sorted(keyed)]


def _bring_together(spec: SceneSpec, points: dict[int, list[tuple[float, float]]], sizes: dict[int, float]) -> None:
    """Close gaps that a relation rules out: things on top of others touch them, things in front of others overlap."""
    for i, relation in enumerate(spec.relations):
        if relation not in ("on top of", "under", "in front of", "behind"):
            continue
        upper, lower = (i, i + 1) if relation in ("on top of", "behind") else (i + 1, i)
        bottom = max(y for _, y in points[upper]) + sizes[upper] / 2
        top = min(y for _, y in points[lower]) - sizes[lower] / 2
        overlap = 0.25 * min(sizes[upper], sizes[lower]) if relation in ("in front of", "behind") else 0.005
        shift = max(0.0, top - bottom + overlap)
        # Both move to meet half-way, together with whatever stands further out on their side.
        line = (bottom + top) / 2
        for g in (upper, lower, *(g for g in points if g not in (upper, lower))):
            middle = sum(y for _, y in points[g]) / len(points[g])
            move = shift / 2 if g == upper or (g != lower and middle < line) else -shift / 2
            points[g] = [(x, y + move) for x, y in points[g]]


def _depths(spec: SceneSpec) -> list[float]:
    depths = [0.0]
    for relation in spec.relations:
        depths.append(depths[-1] + {"in front of": -1.0, "behind": 1.0}.get(relation or "", 0.0))
    low, high = min(depths), max(depths)
    spread = 0.4 if high - low > 1 else 0.55
    return [0.5 + spread * (d - (low + high) / 2) for d in depths]


def count_of(items: Iterable[Item], obj: int) -> int:
    """The number of things of one object class."""
    return sum(i.object == obj for i in items)
