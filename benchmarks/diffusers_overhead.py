"""The graph's overhead over the image model: images per second through the graph and from the bare diffusers pipeline.

    python benchmarks/diffusers_overhead.py                                      # a small model, on a CPU
    python benchmarks/diffusers_overhead.py --preset z-image-turbo --device cuda --batches 1,2,4 --compile

The model is a ``ZImagePipeline`` with random weights: its images are noise, but it does the work of a trained model of
the same size. The small preset takes one or two seconds for an image on one core; the medium one has a billion
parameters, as many as Stable Diffusion 1.5; the last one has the sizes of Z-Image-Turbo (6 billion parameters,
bfloat16) except for its text encoder, which runs once for each image and stays small.

The bare pipeline and the graph share one copy of the weights and make the same images in turns, so that a machine that
slows down slows both. Each graph run plans, checks, refines and writes checkpoints, with a chat model that answers
immediately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from langgraph.checkpoint.sqlite import SqliteSaver
from round_overhead import InstantChatModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.models.devices import pick_devices, pick_dtype
from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.local_weights import without_bars
from gems.options import GeneratorOptions

PROMPT: Final = "two dogs"


@dataclass(frozen=True)
class Preset:
    """The sizes of a model and of its images."""

    size: int
    dim: int
    layers: int
    heads: int
    text_width: int
    vae_channels: tuple[int, ...]


PRESETS: Final = {
    "small": Preset(256, 256, 12, 4, 64, (16, 16, 32, 32)),
    "medium": Preset(512, 1536, 24, 12, 64, (128, 256, 512, 512)),
    # As configured in https://huggingface.co/Tongyi-MAI/Z-Image-Turbo.
    "z-image-turbo": Preset(1024, 3840, 30, 30, 2560, (128, 256, 512, 512)),
}


@dataclass(frozen=True)
class Figures:
    """Measurements at one batch size. ``ratio`` is graph over bare for each pair, by the wall clock.

    ``cpu_ratio`` is the same in processor time, which a busy machine disturbs less; it says nothing about a GPU.
    """

    batch: int
    compiled: bool
    bare_images_per_second: float
    graph_images_per_second: float
    ratio_median: float
    ratio_min: float
    ratio_max: float
    cpu_ratio_median: float
    bare_peak_gb: float | None
    graph_peak_gb: float | None


def save_pipeline(folder: Path, preset: Preset, device: str, dtype: torch.dtype) -> int:
    """Make the pipeline and save it. Return the number of the transformer's parameters."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            tokenizer = _tokenizer()
            encoder = Qwen3Model(
                Qwen3Config(
                    vocab_size=len(tokenizer),
                    hidden_size=preset.text_width,
                    intermediate_size=preset.text_width,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                )
            )
            head = preset.dim // preset.heads
            transformer = diffusers.ZImageTransformer2DModel(
                in_channels=16,
                dim=preset.dim,
                n_layers=preset.layers,
                n_heads=preset.heads,
                n_kv_heads=preset.heads,
                cap_feat_dim=preset.text_width,
                axes_dims=[head - 2 * (3 * head // 8), 3 * head // 8, 3 * head // 8],
                axes_lens=[1536, 512, 512],
            )
            vae = diffusers.AutoencoderKL(
                block_out_channels=preset.vae_channels,
                down_block_types=("DownEncoderBlock2D",) * len(preset.vae_channels),
                up_block_types=("UpDecoderBlock2D",) * len(preset.vae_channels),
                layers_per_block=2,
                latent_channels=16,
                norm_num_groups=min(32, preset.vae_channels[0]),
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.1159,
                scaling_factor=0.3611,
            )
        pipeline = diffusers.ZImagePipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=encoder,
            tokenizer=tokenizer,
            transformer=transformer,
        )
        pipeline.save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    return int(transformer.num_parameters())


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and a chat template that only concatenates the messages."""
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>")  # noqa: S106 (no password)
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return fast


def measure(folder: Path, options: GeneratorOptions, rounds: int, pairs: int) -> Figures:
    """Make ``rounds`` batches, alternating ``pairs`` times between the bare pipeline and the graph."""
    batch = options.batch_size or 1
    generator = DiffusersGenerator(str(folder), name="random", options=options)
    with generator.replicas.borrow() as replica:  # the copy of the weights that the graph uses
        pipeline = replica.pipeline

    def bare() -> None:
        for round_ in range(rounds):
            seeds = [torch.Generator("cpu").manual_seed(round_ * batch + k) for k in range(batch)]
            pipeline(prompt=[PROMPT] * batch, generator=seeds, **generator.settings)

    with _graph(generator, batch, rounds) as through_graph:
        bare()  # warm up, and compile if requested
        through_graph()
        times = [(_timed(bare), _timed(through_graph)) for _ in range(pairs)]
    ratios = [b.seconds / g.seconds for b, g in times]
    images = rounds * batch
    return Figures(
        batch=batch,
        compiled=options.compile,
        bare_images_per_second=images / statistics.median(b.seconds for b, _ in times),
        graph_images_per_second=images / statistics.median(g.seconds for _, g in times),
        ratio_median=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        cpu_ratio_median=statistics.median(b.cpu_seconds / g.cpu_seconds for b, g in times),
        bare_peak_gb=max((b.peak_gb for b, _ in times if b.peak_gb), default=None),
        graph_peak_gb=max((g.peak_gb for _, g in times if g.peak_gb), default=None),
    )


@contextmanager
def _graph(generator: DiffusersGenerator, batch: int, rounds: int) -> Iterator[Callable[[], None]]:
    """A run of ``rounds`` rounds through the graph, with checkpoints and images on disk as in ``gems generate``."""
    context = GemsContext(memory=False, seed=0, max_rounds=rounds, patience=rounds, candidates=batch)
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.sqlite")) as saver,
    ):
        graph = build_graph(
            checkpointer=saver, mllm=InstantChatModel(), generator=generator, images=ImageStore(Path(folder) / "images")
        )
        runs = iter(range(10**6))

        def run() -> None:
            thread: Any = {"configurable": {"thread_id": str(next(runs))}}
            out = graph.invoke({"prompt": PROMPT}, thread, context=context, durability="sync")
            if len(out["attempts"]) != rounds * batch:
                raise SystemExit(f"{len(out['attempts'])} images instead of {rounds * batch}: {out['errors']}")

        yield run


@dataclass(frozen=True)
class _Cost:
    seconds: float
    cpu_seconds: float
    peak_gb: float | None


def _timed(action: Callable[[], None]) -> _Cost:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start, cpu_start = time.perf_counter(), time.process_time()
    action()  # it ends with pixels in Python, so the GPU has nothing left to do
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return _Cost(seconds, cpu_seconds, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--device", help="default: the best device available")
    parser.add_argument("--size", type=int, help="pixels on a side (default: the preset's)")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--batches", default="1", help="batch sizes, separated by commas")
    parser.add_argument("--compile", action="store_true", help="also measure each batch size with the model compiled")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a run, one batch each")
    parser.add_argument(
        "--pairs", type=int, default=5, help="measurements of the bare pipeline and of the graph, in turns"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    preset, device = PRESETS[args.preset], pick_devices(args.device)[0]
    dtype = pick_dtype(None, device)
    size = args.size or preset.size
    with tempfile.TemporaryDirectory() as folder, without_bars():
        parameters = save_pipeline(Path(folder), preset, device, dtype)
        figures = [
            measure(
                Path(folder),
                GeneratorOptions(
                    device=device, width=size, height=size, steps=args.steps, batch_size=int(batch), compile=compiled
                ),
                args.rounds,
                args.pairs,
            )
            for compiled in ((False, True) if args.compile else (False,))
            for batch in args.batches.split(",")
        ]
    setup = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "dtype": str(dtype)[6:],
        "transformer_parameters": parameters,
        "size": size,
        "steps": args.steps,
        "rounds": args.rounds,
        "pairs": args.pairs,
    }
    if args.json:
        print(json.dumps(setup | {"figures": [asdict(f) for f in figures]}))
        return
    print(", ".join(f"{name} {value}" for name, value in setup.items()))
    for f in figures:
        peak = f"; peak {f.graph_peak_gb:.1f} GB, bare {f.bare_peak_gb:.1f} GB" if f.bare_peak_gb else ""
        print(
            f"batch {f.batch}{' compiled' if f.compiled else ''}: {f.graph_images_per_second:.3f} images/s through the "
            f"graph, {f.bare_images_per_second:.3f} bare; ratio {f.ratio_median:.3f} "
            f"({f.ratio_min:.3f} to {f.ratio_max:.3f}), of processor time {f.cpu_ratio_median:.3f}{peak}"
        )


if __name__ == "__main__":
    main()
