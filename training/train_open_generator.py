"""Train the open generator: ``python training/train_open_generator.py --out DIR``.

Scenes are laid out once and kept beside the checkpoint, each with a terse caption and several rich ones. The encoder
and the denoiser then learn together, by flow matching, to turn captions into slots. Each step depends only on the seed
and its number: a run that is stopped at any moment and started again with the same command continues from its last
checkpoint. One thing in ten is held out: no scene has it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gems.models.open.draft_wording import rich, terse
from gems.models.open.network import OpenModel
from gems.models.open.phrasebook import phrasebook
from gems.models.open.slots import ALPHABET, NUM_SLOTS, SLOT_DIM, VECTOR, encode, thing_vectors
from gems.models.open.stage import MAX_THINGS, Scene, layout, sample_wish
from gems.models.open.things import BACKGROUNDS, THINGS
from gems.models.open.tokens import MAX_TOKENS, Encoded, tokens_of_prompt
from gems.models.open.wish import Group, Relation, Wish

__all__ = ["SEEN_THINGS", "Settings", "make_text", "train"]

RICH: Final = 3
HELD_OUT: Final = 512
CHUNK: Final = 2_000

SEEN_THINGS: Final = tuple(index for index, thing in enumerate(THINGS) if thing.is_seen)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    text_width: int = 96
    text_layers: int = 2
    steps: int = 20_000
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 300
    ema: float = 0.999
    scenes: int = 60_000
    terse: float = 0.25
    dropout: float = 0.05
    attached: float = 0.3
    level_mean: float = 0.8
    level_spread: float = 1.3
    seed: int = 0


_SYLLABLES: Final = [
    "ba",
    "be",
    "bi",
    "bo",
    "bu",
    "da",
    "de",
    "di",
    "do",
    "el",
    "en",
    "er",
    "fa",
    "fe",
    "go",
    "ha",
    "in",
    "ka",
    "ke",
    "la",
    "le",
    "li",
    "lo",
    "ma",
    "me",
    "mi",
    "mo",
    "na",
    "ne",
    "no",
    "on",
    "or",
    "pa",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "so",
    "ta",
    "te",
    "ti",
    "to",
    "un",
    "va",
    "we",
    "yo",
]
_COMMON_WORDS: Final = [
    "open",
    "closed",
    "hello",
    "welcome",
    "stop",
    "sale",
    "free",
    "love",
    "peace",
    "home",
    "cafe",
    "bakery",
    "pizza",
    "thanks",
    "happy",
    "birthday",
    "love",
    "you",
    "good",
    "luck",
    "no",
    "entry",
    "for",
    "sale",
    "the",
    "end",
    "best",
    "friends",
    "be",
    "kind",
    "coffee",
    "books",
    "news",
    "music",
    "school",
    "hotel",
    "bar",
    "exit",
    "danger",
    "joy",
    "hope",
    "dream",
]


def make_text(rng: np.random.Generator) -> str:
    """A random text: common words, invented words and numbers."""
    while True:
        words = []
        for _ in range(int(rng.choice([1, 2, 3], p=[0.55, 0.35, 0.1]))):
            roll = rng.random()
            if roll < 0.4:
                words.append(str(rng.choice(_COMMON_WORDS)))
            elif roll < 0.85:
                words.append("".join(rng.choice(_SYLLABLES, size=int(rng.integers(1, 4)))))
            elif roll < 0.93:
                words.append(str(rng.integers(1, 2100)))
            else:
                words.append("".join(rng.choice(list(ALPHABET[:26]), size=int(rng.integers(2, 7)))))
        text = " ".join(words).upper() + str(rng.choice(["", "!", "?"], p=[0.84, 0.12, 0.04]))
        if 1 < len(text) <= 16:
            return text


_ATTACHED: Final = ("on", "in", "holding")


def sample_scene(rng: np.random.Generator, attached: float) -> Scene:
    """A random scene of seen things, now and then of none.

    In a third of the scenes that should lack something it is there all the same. In a share of those with two or more
    things the first is on, in or holding the second, which is rare otherwise.
    """
    if rng.random() < 0.02:
        background = str(rng.choice(BACKGROUNDS))
        return Scene(Wish((), background=background), (), (), background)
    wish = sample_wish(rng, SEEN_THINGS, make_text)
    if len(wish.groups) > 1 and rng.random() < attached:
        name, most = str(rng.choice(_ATTACHED)), int(rng.choice([1, 1, 2, 3]))
        first, second = (
            replace(group, count=min(group.count, count), size="", place="")
            for group, count in zip(wish.groups, (most * 2 if name == "in" else most, 1), strict=False)
        )
        other_relations = tuple(r for r in wish.relations if r.a > 0 and r.name != "between")
        wish = replace(
            wish, groups=(first, second, *wish.groups[2:]), relations=(Relation(name, 0, 1), *other_relations)
        )
    if wish.absent and rng.random() < 0.35 and len(wish.groups) < 4 and sum(g.count for g in wish.groups) < MAX_THINGS:
        intruded = replace(wish, groups=(*wish.groups, Group(wish.absent[0])))
        scene = layout(intruded, rng)
        return replace(scene, wish=replace(scene.wish, groups=scene.wish.groups))
    return layout(wish, rng)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Scenes as slots (n, NUM_SLOTS, SLOT_DIM) float16; captions (n, 1 + RICH, tokens) ids and things' indices."""

    slots: NDArray[np.float16]
    ids: NDArray[np.uint8]
    things: NDArray[np.int16]

    @classmethod
    def chunk(cls, path: Path, n: int, settings: Settings, number: int) -> Dataset:
        """One part of the data set, made if it is missing."""
        if not path.exists():
            rng, book = np.random.default_rng([settings.seed, number]), phrasebook("en")
            slots = []
            ids = np.zeros((n, 1 + RICH, MAX_TOKENS), dtype=np.uint8)
            things = np.full((n, 1 + RICH, MAX_TOKENS), -1, dtype=np.int16)
            for k in range(n):
                scene = sample_scene(rng, settings.attached)
                slots.append(encode(scene).astype(np.float16))
                view = _as_asked(scene)
                for j, text in enumerate([terse(view.wish), *(rich(view, rng) for _ in range(RICH))]):
                    for column, (token, thing) in enumerate(tokens_of_prompt(text, book)):
                        ids[k, j, column], things[k, j, column] = token, thing
            draft = path.with_suffix(".tmp.npz")
            np.savez_compressed(draft, slots=np.stack(slots), ids=ids, things=things)
            draft.replace(path)
        with np.load(path) as arrays:
            return cls(arrays["slots"], arrays["ids"], arrays["things"])

    @classmethod
    def cached(cls, folder: Path, settings: Settings) -> Dataset:
        """All parts, of which the missing ones are made."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = []
        for number in range(settings.scenes // CHUNK):
            parts.append(cls.chunk(folder / f"scenes-{settings.seed}-{number:03d}.npz", CHUNK, settings, number))
            print(f"scenes {len(parts) * CHUNK}", flush=True)
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def _as_asked(scene: Scene) -> Scene:
    """A scene without the group that should be absent, for its captions."""
    wish = scene.wish
    if wish.absent and wish.groups[-1].thing in wish.absent:
        visible = replace(wish, groups=wish.groups[:-1])
        return replace(scene, wish=visible, members=scene.members[:-1], arrangements=scene.arrangements[:-1])
    return scene


def batches(data: Dataset, settings: Settings, start: int) -> Iterator[tuple[Tensor, Encoded, torch.Generator]]:
    """All batches from step ``start`` on; batch i is the same in every run with these settings."""
    step = start
    vectors = np.concatenate([thing_vectors(), np.zeros((1, thing_vectors().shape[1]), dtype=np.float32)])
    while True:
        rng = np.random.default_rng([settings.seed, step])
        rows = rng.integers(len(data.slots) - HELD_OUT, size=settings.batch)
        wordings = np.where(rng.random(len(rows)) < settings.terse, 0, rng.integers(1, 1 + RICH, size=len(rows)))
        ids, things = data.ids[rows, wordings].astype(np.int64), data.things[rows, wordings].astype(np.int64)
        empty = rng.random(len(rows)) < settings.dropout
        ids[empty], things[empty] = 0, -1
        ids[empty, 0] = 1
        yield make_batch(
            data.slots[rows], ids, things, vectors, torch.Generator().manual_seed((settings.seed << 32) + step)
        )
        step += 1


def make_batch(
    slots: NDArray[np.float16],
    ids: NDArray[np.int64],
    things: NDArray[np.int64],
    vectors: NDArray[np.float32],
    generator: torch.Generator,
) -> tuple[Tensor, Encoded, torch.Generator]:
    """Cut the padding that no caption needs."""
    longest = int((ids > 0).sum(axis=1).max())
    ids, things = ids[:, :longest], things[:, :longest]
    return (
        torch.from_numpy(slots.astype(np.float32)),
        Encoded(ids, vectors[things], (ids > 0).astype(np.int64)),
        generator,
    )


_LEAST_LEVEL: Final = 0.3


def loss_of(
    model: OpenModel, slots: Tensor, prompts: Encoded, generator: torch.Generator, settings: Settings
) -> Tensor:
    """The flow-matching loss at a logit-normal noise level (arXiv 2403.03206).

    The levels are high ones: where a thing stands is decided early, and the prompt counts only until then.
    """
    noise = torch.randn(slots.shape, generator=generator)
    level = torch.sigmoid(settings.level_mean + settings.level_spread * torch.randn(len(slots), generator=generator))
    s = level[:, None, None]
    text, mask = model.read(prompts)
    estimate = model.denoiser((1 - s) * slots + s * noise, level, text, mask)
    error: Tensor = (estimate - slots) / s.clamp(min=_LEAST_LEVEL)
    return (error.square() * _WEIGHTS).mean()


def _weights() -> Tensor:
    """How much each number of a slot counts: choices of one in many, which differ little from noise, count more."""
    weights = torch.ones(NUM_SLOTS, SLOT_DIM)
    weights[:, 0] = 3.0
    weights[1 : 1 + MAX_THINGS, 1 + VECTOR : -5] = 4.0
    weights[1 : 1 + MAX_THINGS, -5:-1] = 15.0
    weights[0, 1 : 1 + len(BACKGROUNDS)] = 6.0
    weights[1 + MAX_THINGS :, 1 : 1 + len(ALPHABET)] = 4.0
    return weights


_WEIGHTS: Final = _weights()


class Run:
    """The model, its moving average, the optimizer, and the checkpoint file that stores them."""

    def __init__(self, settings: Settings, path: Path, start: Path | None = None) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.path, self.step, self.loss = settings, path, 0, float("nan")
        s = settings
        self.model = OpenModel(s.width, s.layers, s.heads, s.text_width, s.text_layers)
        if start and not path.exists():
            _begin_from(self.model, torch.load(start, weights_only=True)["average"])
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=s.learning_rate, weight_decay=0.01)
        if path.exists():
            state = torch.load(path, weights_only=True)
            if {**state["settings"], "steps": 0} != {**asdict(settings), "steps": 0}:
                raise ValueError(f"{path} was made with other settings: {state['settings']}")
            self.step, self.loss = state["step"], state["loss"]
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])

    def learn(self, batch: tuple[Tensor, Encoded, torch.Generator]) -> None:
        """One optimizer step."""
        s = self.settings
        rate = s.learning_rate * min((self.step + 1) / s.warmup, 1 - self.step / s.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(self.model, *batch, s)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        keep = min(s.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        self.step += 1
        self.loss = loss.item() if self.step == 1 else 0.98 * self.loss + 0.02 * loss.item()

    def save(self) -> None:
        """Write the checkpoint to a temporary file, then replace the old one with it."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "loss": self.loss,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        draft = self.path.with_suffix(".tmp")
        torch.save(state, draft)
        draft.replace(self.path)


def _begin_from(model: OpenModel, weights: dict[str, Tensor]) -> None:
    """Take over the weights of a smaller model; blocks that it lacks do nothing at first (arXiv 1511.05641)."""
    missing = model.load_state_dict(weights, strict=False).missing_keys
    for name, parameter in model.named_parameters():
        if name in missing and name.rpartition(".")[0].endswith(("attention.out", "mlp.2")):
            nn.init.zeros_(parameter)


def train(settings: Settings, out: Path, report: Callable[[str], None], start: Path | None = None) -> None:
    """Train, or continue training."""
    data = Dataset.cached(out / "scenes", settings)
    run = Run(settings, out / "checkpoint.pt", start)
    saved = time.monotonic()
    for batch in batches(data, settings, run.step):
        if run.step >= settings.steps:
            break
        run.learn(batch)
        if time.monotonic() - saved >= 60 or run.step % 1000 == 0:
            run.save()
            report(f"step {run.step}: loss {run.loss:.4f}")
            saved = time.monotonic()
    run.save()


def main() -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scenes-only", action="store_true")
    parser.add_argument("--start", type=Path, help="checkpoint of a model with fewer blocks to begin from")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    out, threads, scenes_only, start = (options.pop(name) for name in ("out", "threads", "scenes_only", "start"))
    torch.set_num_threads(threads)
    if scenes_only:
        Dataset.cached(out / "scenes", Settings(**options))
        return 0
    train(Settings(**options), out, lambda line: print(line, flush=True), start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
