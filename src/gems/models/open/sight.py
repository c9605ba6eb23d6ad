"""What the open vision model sees in an image, and how likely the answers to questions about it are.

The finder tells where things are, the namer what each is and how it looks, the reader what is written on a label.
Nothing here depends on how an image was made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import erf, sqrt
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gems.models.open.finder import Finder, Spot, spots_of
from gems.models.open.lettering import LineReader, lines_of, read_lines
from gems.models.open.namer import Namer, crop_of
from gems.models.open.painting import plate_of
from gems.models.open.questions import Question, Who
from gems.models.open.stage import Item, holds_place, relation_margin
from gems.models.open.things import BACKGROUNDS, LOOK_NAMES, SIZES
from gems.models.pocket.vision import normalise, pixels

__all__ = ["Calibration", "Detection", "Eyes", "Sight"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How raw outputs become calibrated probabilities; fitted on scenes that no training saw."""

    heat_scale: float = 1.0
    heat_shift: float = 0.0
    name_temperature: float = 1.0
    look_temperature: float = 1.0
    background_temperature: float = 1.0
    expected_odds: float = 15.0
    """How much likelier a thing is that was asked for than one that was not."""
    look_odds: float = 1.0
    """How much likelier a thing that was asked for has the look that was asked of it than another."""
    count_odds: float = 5.0
    """How much likelier the number that was asked for is than sight alone, which takes overlapping things for one."""
    margin_error: dict[str, float] = field(default_factory=dict)
    """By relation: the standard deviation of (seen - true) margin."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One thing that was found.

    Attributes:
        item: The most likely thing: class, look, place, size and depth.
        score: The probability that there is a thing at all.
        names: Probabilities of THINGS, given that there is a thing.
        looks: Probabilities of LOOK_NAMES, given that there is a thing of which nothing was asked.
        lettered: The probability that something is written on it.
        looks_of: Probabilities of LOOK_NAMES given what the thing is, for things that were asked for.
    """

    item: Item
    score: float
    names: NDArray[np.float64]
    looks: NDArray[np.float64]
    lettered: float
    looks_of: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)

    def is_a(self, who: Who) -> float:
        """The probability that there is a thing and that it is one of these."""
        look = self.p_look(who.thing, who.look) if who.look >= 0 else 1.0
        return self.score * float(self.names[who.thing]) * look

    def p_look(self, thing: int, look: int) -> float:
        """The probability of a look, given what the thing is."""
        return float(self.looks_of.get(thing, self.looks)[look])

    def expecting(self, expectation: Mapping[int, Collection[int]], name_odds: float, look_odds: float) -> Detection:
        """The same find by someone who knows which things were asked for, and in which looks."""
        names, looks_of = self.names.copy(), {}
        for thing, looks in expectation.items():
            odds = np.ones(len(LOOK_NAMES))
            odds[list(looks)] = look_odds
            joint = self.looks * odds / odds.mean()
            names[thing] *= name_odds * joint.sum()
            looks_of[thing] = joint / joint.sum()
        names /= names.sum()
        best = int(names.argmax())
        item = replace(self.item, thing=best, look=int(looks_of.get(best, self.looks).argmax()))
        return replace(self, item=item, names=names, looks_of=looks_of)


_SURE: Final = 0.5
"""The least probability at which a detection counts for places and looks."""

_MARGIN_ERROR: Final = 0.02


class Sight:
    """What was seen in one image."""

    def __init__(
        self,
        detections: Sequence[Detection],
        backgrounds: NDArray[np.float64],
        image: Image.Image,
        reader: LineReader,
        calibration: Calibration,
    ) -> None:
        self.detections, self.backgrounds = tuple(detections), backgrounds
        self._image, self._reader, self._calibration = image, reader, calibration

    def expecting(self, expectation: Mapping[int, Collection[int]]) -> Self:
        """The same sight by someone who knows what the image was made to show: these things, in these looks."""
        c = self._calibration
        expected = [d.expecting(expectation, c.expected_odds, c.look_odds) for d in self.detections]
        return type(self)(expected, self.backgrounds, self._image, self._reader, c)

    def p_any(self, who: Who) -> float:
        """The probability that the image shows at least one."""
        return 1.0 - float(self.counts(who)[0])

    def counts(self, who: Who) -> NDArray[np.float64]:
        """Probabilities of 0, 1, 2, ... things, with independent detections (a Poisson-binomial distribution)."""
        distribution = np.ones(1)
        for detection in self.detections:
            p = detection.is_a(who)
            if p > 1e-4:
                distribution = np.convolve(distribution, [1.0 - p, p])
        return distribution

    def p_count(self, who: Who, n: int, *, more: bool = False) -> float:
        """The probability of exactly ``n``, or of at least as many."""
        distribution = self.counts(who)
        if more:
            return float(distribution[n:].sum())
        return float(distribution[n]) if n < len(distribution) else 0.0

    def p_number(self, who: Who, n: int) -> float:
        """The probability of exactly ``n``, given that the image was made to show as many."""
        p, p_any = self.p_count(who, n), self.p_any(who)
        odds = self._calibration.count_odds * p
        p = odds / (odds + 1 - p)
        return min(p, p_any) if n and p_any < 0.5 else p

    def items(self, who: Who) -> list[Item]:
        """The things that are more likely than not these."""
        return [d.item for d in self.detections if d.is_a(who) >= _SURE]

    def p_look(self, who: Who, look: int) -> float:
        """The probability that there are such things and that all of them look so."""
        all_have = 1.0
        for detection in self.detections:
            all_have *= 1.0 - detection.is_a(who) * (1.0 - detection.p_look(who.thing, look))
        return max(0.0, all_have - float(self.counts(who)[0]))

    def p_size(self, who: Who, size: str) -> float:
        """The probability that all of them are so large."""
        items, (low, high) = self.items(who), SIZES[size]
        if not items:
            return 0.5 * self.p_any(who)
        margin = min(min(i.size - low, high - i.size) for i in items)
        return self.p_any(who) * _normal(margin / 0.02)

    def p_place(self, who: Who, place: str) -> float:
        """The probability that they stand there."""
        items = self.items(who)
        if not items:
            return 0.5 * self.p_any(who)
        shifts = [(dx, dy) for dx in (-0.025, 0.0, 0.025) for dy in (-0.025, 0.0, 0.025)]
        near = [_moved(items, dx, dy) for dx, dy in shifts]
        return self.p_any(who) * sum(holds_place(place, shifted) for shifted in near) / len(near)

    def p_relation(self, question: Question) -> float:
        """The probability that the image shows all of them, and that the relation holds."""
        everyone = (question.who, *question.partners)
        all_there = float(np.prod([self.p_any(who) for who in everyone]))
        groups = [self.items(who) for who in everyone]
        if not all(groups):
            return 0.5 * all_there
        error = self._calibration.margin_error.get(question.name, _MARGIN_ERROR)
        return all_there * _normal(relation_margin(question.name, *groups) / error)

    def p_background(self, name: str) -> float:
        """The probability of a background."""
        return float(self.backgrounds[BACKGROUNDS.index(name)])

    @cached_property
    def text(self) -> tuple[str, float]:
        """What is written on the thing that is most likely lettered, and how sure the reading is."""
        lettered = max(self.detections, key=lambda d: d.score * d.lettered, default=None)
        if lettered is None or lettered.score * lettered.lettered < 0.3:
            return "", 0.0
        label = self._image.crop(plate_of(lettered.item, self._image.width))
        return read_lines(self._reader, lines_of(label))

    def p_text(self, who: Who, text: str) -> float:
        """The probability that such a thing says just this."""
        text_seen, sureness = self.text
        agrees = text_seen.replace(" ", "") == text.replace(" ", "")
        return self.p_any(who) * (max(0.5, sureness) if agrees else min(0.2, 1 - sureness))


def _normal(z: float) -> float:
    return 0.5 * (1.0 + erf(z / sqrt(2.0)))


def _moved(items: Sequence[Item], dx: float, dy: float) -> list[Item]:
    return [Item(i.thing, i.look, i.x + dx, i.y + dy, i.size, i.depth) for i in items]


class Eyes:
    """The vision model: three networks, the prototypes of all things, and the calibration."""

    def __init__(
        self,
        finder: Finder,
        namer: Namer,
        prototypes: NDArray[np.float32],
        reader: LineReader,
        calibration: Calibration,
    ) -> None:
        self.finder, self.namer, self.reader = finder.eval(), namer.eval(), reader.eval()
        self.prototypes, self.calibration = torch.from_numpy(prototypes.astype(np.float32)), calibration

    @torch.inference_mode()
    def look(self, image: Image.Image) -> Sight:
        """Look at an image of any size."""
        image = image.convert("RGB")
        outputs, ground = self.finder(normalise(torch.from_numpy(np.array(pixels(image)))[None]))
        c = self.calibration
        spots = spots_of({name: value[0].numpy() for name, value in outputs.items()}, c.heat_scale, c.heat_shift)
        backgrounds = (ground[0].double() / c.background_temperature).softmax(0).numpy()
        return Sight(self._name(image, spots), backgrounds, image, self.reader, c)

    def _name(self, image: Image.Image, spots: Sequence[Spot]) -> list[Detection]:
        if not spots:
            return []
        crops = np.stack([np.asarray(crop_of(image, spot.x, spot.y, spot.size)) for spot in spots])
        embedded, look = self.namer(normalise(torch.from_numpy(crops)))
        c = self.calibration
        scores = self.namer.scale.exp() * embedded @ self.prototypes.T
        names = (scores.double() / c.name_temperature).softmax(-1).numpy()
        looks = (look.double() / c.look_temperature).softmax(-1).numpy()
        return [
            Detection(
                Item(int(n.argmax()), int(k.argmax()), s.x, s.y, s.size, s.depth, s.lettered > 0.5),
                s.score,
                n,
                k,
                s.lettered,
            )
            for s, n, k in zip(spots, names, looks, strict=True)
        ]
