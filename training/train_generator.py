"""Train the pocket generator: ``python training/train_generator.py --out DIR``.

Scenes are laid out once and kept beside the checkpoint, each with one terse caption and several rich ones. The
transformer and its text encoder then learn together, by flow matching, to turn captions into slots. Each step depends
only on the seed and the step's number: a run that is stopped at any moment and started again with the same command
continues from its last checkpoint and ends with the same weights as an uninterrupted run.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from gems.models.pocket.captions import rich_caption, terse_caption
from gems.models.pocket.pipeline import PocketPipeline, SlotDecoder
from gems.models.pocket.scene import encode_slots, layout, sample_spec
from gems.models.pocket.tokenizer import build_tokenizer
from gems.models.pocket.transformer import PocketTransformer

__all__ = ["Settings", "build_pipeline", "main", "train"]

RICH_CAPTIONS: Final = 3
"""Rich captions kept for each scene, in addition to its terse caption."""

HELD_OUT: Final = 512
"""The last scenes of the data set are never trained on; the held-out loss is measured on them."""

BUCKET: Final = 8
"""Number of batches that are drawn together and sorted by caption length, to save padding."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run. A checkpoint can only be continued with the settings it was made with."""

    width: int = 56
    layers: int = 1
    heads: int = 4
    text_width: int = 56
    text_layers: int = 2
    steps: int = 7500
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: int = 200
    ema: float = 0.999
    scenes: int = 40_000
    terse: float = 0.0
    dropout: float = 0.1
    seed: int = 0
    start: str = ""


_HELP: Final = {
    "width": "channels of a slot in the transformer; more channels make fewer mistakes but slower steps",
    "layers": "blocks of the transformer",
    "heads": "attention heads, in the transformer and in the text encoder",
    "text_width": "channels of a token in the text encoder",
    "text_layers": "layers of the text encoder",
    "steps": "optimizer steps; the learning rate falls to zero over them, so a shorter run is a worse model",
    "batch": "captions per step",
    "learning_rate": "AdamW's peak learning rate, after the warm-up",
    "warmup": "steps of linear warm-up",
    "ema": "decay of the weights' moving average, which is what is saved",
    "scenes": "laid-out scenes in the data set (0.002 s each, once)",
    "terse": "share of scenes that only have a terse caption; the others only have rich ones",
    "dropout": "share of captions replaced by the empty prompt, for classifier-free guidance",
    "seed": "seed of the scenes, the first weights and the noise",
    "start": "folder of a trained pipeline of the same shape to start from: fine-tunes it",
}


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dataset:
    """Scenes as slots, (n, NUM_SLOTS, SLOT_DIM) float16, and as captions, (n, 1 + RICH_CAPTIONS, tokens) token ids.

    Captions are padded with zeros, the tokenizer's PAD; the first one of each scene is the terse one.
    """

    slots: NDArray[np.float16]
    captions: NDArray[np.uint8]

    @classmethod
    def make(cls, n: int, seed: int) -> Dataset:
        """Lay out ``n`` random scenes and caption them."""
        rng = np.random.default_rng(seed)
        tokenizer = build_tokenizer()
        slots, captions = [], []
        for _ in track(range(n), "scenes"):
            scene = layout(sample_spec(rng), rng)
            slots.append(encode_slots(scene.items).astype(np.float16))
            texts = [terse_caption(scene.spec), *(rich_caption(scene, rng) for _ in range(RICH_CAPTIONS))]
            rows = tokenizer(texts)["input_ids"]
            captions.append(
                np.array([row + [0] * (tokenizer.model_max_length - len(row)) for row in rows], dtype=np.uint8)
            )
        return cls(np.stack(slots), np.stack(captions))

    @classmethod
    def cached(cls, path: Path, n: int, seed: int) -> Dataset:
        """The data set stored at ``path``, which is made first if it is missing."""
        if not path.exists():
            data = cls.make(n, seed)
            draft = path.with_suffix(".tmp.npz")
            np.savez_compressed(draft, slots=data.slots, captions=data.captions)
            draft.replace(path)
        with np.load(path) as arrays:
            return cls(arrays["slots"], arrays["captions"])


@dataclass(frozen=True, slots=True)
class Batch:
    """Slots (batch, NUM_SLOTS, SLOT_DIM), token ids (batch, tokens) with their mask, and a random generator."""

    slots: Tensor
    tokens: Tensor
    mask: Tensor
    generator: torch.Generator


def batches(data: Dataset, settings: Settings, start: int) -> Iterator[Batch]:
    """All batches from step ``start`` on, without end; batch i is the same in every run with these settings."""
    bucket, skip = divmod(start, BUCKET)
    has_terse = np.random.default_rng(settings.seed).random(len(data.slots)) < settings.terse
    while True:
        rng = np.random.default_rng([settings.seed, bucket])
        n = BUCKET * settings.batch
        scenes = rng.integers(len(data.slots) - HELD_OUT, size=n)
        wordings = np.where(has_terse[scenes], 0, rng.integers(1, 1 + RICH_CAPTIONS, size=n))
        tokens = data.captions[scenes, wordings]
        tokens[rng.random(n) < settings.dropout] = build_empty_prompt(tokens.shape[1])
        groups = np.argsort((tokens > 0).sum(axis=1), kind="stable").reshape(BUCKET, -1)
        for i, rows in list(enumerate(groups[rng.permutation(BUCKET)]))[skip:]:
            generator = torch.Generator().manual_seed((settings.seed << 32) + bucket * BUCKET + i)
            yield make_batch(data.slots[scenes[rows]], tokens[rows], generator)
        bucket, skip = bucket + 1, 0


def build_empty_prompt(length: int) -> NDArray[np.uint8]:
    """The token ids of "", padded to ``length``."""
    ids = build_tokenizer()("")["input_ids"]
    return np.array(ids + [0] * (length - len(ids)), dtype=np.uint8)


def make_batch(slots: NDArray[np.float16], tokens: NDArray[np.uint8], generator: torch.Generator) -> Batch:
    """Remove the padding that no caption needs, and convert to tensors."""
    longest = int((tokens > 0).sum(axis=1).max())
    ids = torch.from_numpy(tokens[:, :longest].astype(np.int64))
    return Batch(torch.from_numpy(slots.astype(np.float32)), ids, (ids > 0).long(), generator)


# --- model ----------------------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """The trained parts of the pipeline, as one module."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        tokenizer = build_tokenizer()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.text_width,
                intermediate_size=4 * settings.text_width,
                num_hidden_layers=settings.text_layers,
                num_attention_heads=settings.heads,
                max_position_embeddings=tokenizer.model_max_length,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        self.transformer = PocketTransformer(settings.width, settings.layers, settings.heads, settings.text_width)

    def loss(self, batch: Batch, device: str) -> Tensor:
        """The flow-matching loss: the velocity's squared error at a logit-normal noise level (arXiv 2403.03206).

        The velocity's error is the estimate's error divided by the noise level, but by ``_LEAST_LEVEL`` at least.
        """
        clean, noise_shape = batch.slots, batch.slots.shape
        noise = torch.randn(noise_shape, generator=batch.generator)
        level = torch.sigmoid(torch.randn(noise_shape[0], generator=batch.generator))
        s = level[:, None, None]
        clean, noise, s, level, tokens, mask = (
            x.to(device) for x in (clean, noise, s, level, batch.tokens, batch.mask)
        )
        text = self.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        estimate = self.transformer((1 - s) * clean + s * noise, level, text, mask)
        error: Tensor = (estimate - clean) / s.clamp(min=_LEAST_LEVEL)
        return error.square().mean()


_LEAST_LEVEL: Final = 0.2


def build_pipeline(model: Denoiser) -> PocketPipeline:
    """A pipeline of the trained parts."""
    return PocketPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=model.text_encoder.eval(),
        transformer=model.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        decoder=SlotDecoder(),
    )


# --- the run --------------------------------------------------------------------------------------------------------


def train(settings: Settings, out: Path, *, device: str = "cpu", save_every: float = 60.0, stop_at: int = 0) -> float:
    """Train, or continue training, and save the pipeline in ``out``.

    Args:
        settings: The settings of the run.
        out: Folder of the finished pipeline. Its sub-folder "training" contains the data set and the checkpoint.
        device: The device to train on.
        save_every: Seconds between checkpoints.
        stop_at: Stop after this step with a checkpoint, like an interrupted run; 0 runs to the end.

    Returns:
        The held-out loss of the moving average.

    Raises:
        ValueError: The checkpoint in ``out`` was made with other settings, or ``settings.scenes`` is too low.
    """
    if settings.scenes <= HELD_OUT:
        raise ValueError(f"--scenes must exceed the {HELD_OUT} held-out scenes, but is {settings.scenes}")
    work = out / "training"
    work.mkdir(parents=True, exist_ok=True)
    data = Dataset.cached(work / f"scenes-{settings.scenes}-{settings.seed}.npz", settings.scenes, settings.seed)
    run = Run(settings, work / "checkpoint.pt", device)
    stop = stop_at or settings.steps
    note = TextColumn("{task.fields[note]}")
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, refresh_per_second=2) as bar:
        task = bar.add_task("steps", total=settings.steps, completed=run.step, note="")
        saved = time.monotonic()
        for batch in batches(data, settings, run.step):
            if run.step >= stop:
                break
            run.learn(batch)
            bar.update(task, completed=run.step, note=f"loss {run.loss:.4f}")
            if time.monotonic() - saved >= save_every:
                run.save()
                bar.console.print(f"step {run.step}: loss {run.loss:.4f}, held out {run.held_out(data):.4f}")
                saved = time.monotonic()
    run.save()
    build_pipeline(run.average).save_pretrained(out)
    return run.held_out(data)


class Run:
    """The model, its moving average, the optimizer, and the checkpoint file that stores them."""

    def __init__(self, settings: Settings, path: Path, device: str) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.path, self.device = settings, path, device
        self.step, self.loss = 0, float("nan")
        self.model = Denoiser(settings).to(device)
        if settings.start:
            trained = PocketPipeline.from_pretrained(settings.start)
            self.model.text_encoder.load_state_dict(trained.text_encoder.state_dict())
            self.model.transformer.load_state_dict(trained.transformer.state_dict())
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
        if path.exists():
            self._load()

    def learn(self, batch: Batch) -> None:
        """One optimizer step."""
        s = self.settings
        rate = s.learning_rate * min((self.step + 1) / s.warmup, 1 - self.step / s.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.model.loss(batch, self.device)
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

    @torch.no_grad()
    def held_out(self, data: Dataset) -> float:
        """The moving average's loss on the held-out scenes, once with terse and once with rich captions."""
        slots, captions = data.slots[-HELD_OUT:], data.captions[-HELD_OUT:]
        generator = torch.Generator().manual_seed(0)
        losses = [
            self.average.loss(make_batch(slots, captions[:, wording], generator), self.device) for wording in (0, 1)
        ]
        return float(sum(losses) / len(losses))

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

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise ValueError(f"{self.path} was made with other settings: {json.dumps(state['settings'])}")
        self.step, self.loss = state["step"], state["loss"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(
        prog="python training/train_generator.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python training/train_generator.py --out pocket-large --width 256 --layers 8 --device cuda",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline and its checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps, ...")
    for field in fields(Settings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="DIR" if field.name == "start" else "N",
            help=f"{_HELP[field.name]} (default {field.default!r})",
        )
    options = vars(parser.parse_args(arguments))
    out, device = options.pop("out"), options.pop("device")
    try:
        loss = train(Settings(**options), out, device=device)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the same command continues from {out / 'training' / 'checkpoint.pt'}\n")
        return 130
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"held-out loss {loss:.4f}; the pipeline is in {out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
