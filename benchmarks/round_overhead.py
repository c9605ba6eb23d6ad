"""The cost of one round of the loop outside the models: graph steps, checkpoints, image store, prompts.

    python benchmarks/round_overhead.py --rounds 20 --runs 5

The chat model and the generator answer immediately, with answers and a 512 x 512 image of realistic size; checkpoints
are written to a SQLite file synchronously, as in ``gems generate``. Reported is the cost of a further round, a run of
many rounds minus a run of one, by the wall clock and in processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.sqlite import SqliteSaver
from PIL import Image

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.models.generators import GeneratedImage, ImageRequest, StepCallback
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import layout, sample_spec

QUESTIONS = [{"question": f"Is thing number {i} where it should be?", "kind": "position"} for i in range(10)]


class InstantChatModel(BaseChatModel):
    """Fails every requirement, immediately, so that the loop runs all its rounds."""

    @property
    def _llm_type(self) -> str:
        return "instant"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Offer tools."""
        kwargs.pop("tool_choice", None)
        return self.bind(tools=[convert_to_openai_tool(t) for t in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, *, tools: Any = (), **kwargs: Any
    ) -> ChatResult:
        name = [t["function"]["name"] for t in tools][-1]
        answers: dict[str, dict[str, Any]] = {
            "Plan": {"prompt": "two dogs"},
            "Requirements": {"requirements": QUESTIONS},
            "Verdicts": {
                "verdicts": [
                    {"id": f"r{i + 1}", "answer": "no", "confidence": 0.9, "reason": "three dogs seen"}
                    for i in range(len(QUESTIONS))
                ]
            },
            "Refinement": {"experience": "the count was wrong", "strategy": "rewrite", "prompt": "exactly two dogs"},
        }
        message = AIMessage(
            content="", tool_calls=[{"name": name, "args": answers[name], "id": "c", "type": "tool_call"}]
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


class InstantGenerator:
    """Returns scenes drawn in advance."""

    name = "instant"
    fingerprint = "0" * 64
    edits = False

    def __init__(self, images: list[Image.Image]) -> None:
        self._images = images

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | Any]:
        """See ``ImageGenerator.generate``."""
        return [GeneratedImage(r, self._images[r.seed % len(self._images)]) for r in requests]


def measure(rounds: int, runs: int) -> tuple[list[float], list[float]]:
    """The cost of a further round in milliseconds, for each run: by the wall clock, and in processor time."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(layout(sample_spec(rng), rng).items, style=i) for i in range(rounds)]
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder) / "warm-up", 2, scenes)
        for run in range(runs):
            single_wall, single_cpu = _run(Path(folder) / f"{run}-single", 1, scenes)
            many_wall, many_cpu = _run(Path(folder) / f"{run}-many", rounds, scenes)
            wall.append(1000 * (many_wall - single_wall) / (rounds - 1))
            cpu.append(1000 * (many_cpu - single_cpu) / (rounds - 1))
    return wall, cpu


def _run(folder: Path, rounds: int, scenes: list[Image.Image]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one run."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "checkpoints.sqlite", check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    graph = build_graph(
        checkpointer=SqliteSaver(connection),
        mllm=InstantChatModel(),
        generator=InstantGenerator(scenes),
        images=ImageStore(folder / "images"),
    )
    context = GemsContext(memory=False, seed=0, max_rounds=rounds, patience=rounds)
    start, cpu_start = time.perf_counter(), time.process_time()
    out = graph.invoke({"prompt": "two dogs"}, {"configurable": {"thread_id": "t"}}, context=context, durability="sync")
    seconds = time.perf_counter() - start, time.process_time() - cpu_start
    connection.close()
    if len(out["attempts"]) != rounds:
        raise SystemExit(f"{len(out['attempts'])} rounds instead of {rounds}: {out['errors']}")
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wall, cpu = measure(args.rounds, args.runs)
    result = {
        "rounds": args.rounds,
        "runs": args.runs,
        "ms_per_round_median": round(statistics.median(wall), 2),
        "ms_per_round_min": round(min(wall), 2),
        "ms_per_round_max": round(max(wall), 2),
        "cpu_ms_per_round_median": round(statistics.median(cpu), 2),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{k:>22}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
