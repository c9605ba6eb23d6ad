"""Whole runs against servers whose answers are almost right: is everything read that can be, and nothing made up?

    python benchmarks/answer_fuzz.py --answers 10000 --seed 7

Every chat answer of ``benchmarks/odd_answers.py`` has items that can be read; about 3 in 10 of its images are none. The
runs go through the real graph, LangChain's client and HTTP, with all four ways of asking for forms and three kinds of
image servers. A run may end as ``failed`` only if it has asked for images and none could be read. The figures go to
stdout as JSON, the progress to stderr. Exit code 1 if a figure that must be 0 is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from gems.authority import OPERATOR
from gems.errors import GemsError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsInput, GemsOutput
from gems.memory.image_store import ImageStore
from gems.models.registry import init_image_generator
from gems.nodes.retry import RETRY
from gems.options import ChatOptions, GeneratorOptions

WAYS: Final = ("auto", "json_schema", "tool", "json_mode", "text")
WORKFLOW: Final = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 0}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
    "9": {"class_type": "SaveImage", "inputs": {}},
}
_RUNS_AT_ONCE: Final = 4


@dataclass
class Figures:
    """What happened in all runs."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failed_though_readable: int = 0
    wrong_yes: int = 0
    """Verdicts of yes that the server did not mean."""
    lost_answers: int = 0
    """Verdicts that are unsure, though the server meant yes or no."""
    tracebacks: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether everything is 0 that must be."""
        return not (self.failed_though_readable or self.wrong_yes or self.lost_answers or self.tracebacks)


@contextmanager
def _serving(seed: int) -> Iterator[str]:
    script = Path(__file__).with_name("odd_answers.py")
    command = [sys.executable, str(script), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our script
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def _log(address: str) -> dict[str, dict[str, int]]:
    log: dict[str, dict[str, int]] = httpx.get(f"{address}/log").json()
    return log


class _Runner:
    """Makes runs, one after another in each of several threads."""

    def __init__(self, address: str, folder: Path) -> None:
        workflow = folder / "workflow.json"
        workflow.write_text(json.dumps(WORKFLOW))
        common = {"timeout": 60.0, "concurrency": 8}  # a busy machine is no odd answer
        fields = {"workflow": str(workflow), "prompt_field": "6.text", "seed_field": "3.seed"}
        generators = [
            init_image_generator(
                "openai:x", GeneratorOptions(base_url=f"{address}/v1", api_key="none", **common), OPERATOR
            ),
            init_image_generator(f"http:{address}/draw", GeneratorOptions(**common), OPERATOR),
            init_image_generator(f"comfyui:{address}", GeneratorOptions(**common, **fields), OPERATOR),
        ]
        store = ImageStore(folder / "images")
        retry = RETRY._replace(initial_interval=0.01, max_interval=0.05)
        self._graphs = [build_graph(generator=g, images=store, retry=retry) for g in generators]
        self._contexts = [
            GemsContext(
                mllm="openai:x",
                chat_options=ChatOptions(base_url=f"{address}/v1", api_key="none", structured=way),
                memory=False,
                max_rounds=2,
                candidates=8,
            ).as_operator()
            for way in WAYS
        ]

    def run(self, number: int) -> tuple[str, GemsOutput | None, str]:
        """The prompt, the run's output, and the traceback if there is one in its place."""
        prompt = f"two red cars and a dog, number {number}"
        graph, context = self._graphs[number % 3], self._contexts[number % len(self._contexts)]
        try:
            output: Any = graph.invoke(GemsInput(prompt=prompt), context=context)
        except GemsError as error:
            return prompt, {"outcome": "failed", "errors": [str(error)]}, ""
        except Exception:
            return prompt, None, traceback.format_exc()
        return prompt, output, ""


def _note(figures: Figures, prompt: str, output: GemsOutput | None, trace: str, log: dict[str, dict[str, int]]) -> None:
    figures.runs += 1
    if output is None:
        figures.tracebacks += 1
        figures.examples.append(trace)
        return
    outcome = output["outcome"] or "none"
    figures.outcomes[outcome] += 1
    if outcome == "failed" and (log["readable"].get(prompt) or not log["images"].get(prompt)):
        figures.failed_though_readable += 1
        figures.examples += output.get("errors", [])
    for verdict in (v for attempt in output.get("attempts", []) for v in attempt.answers):
        meaning = verdict.reason.removeprefix("meant ")
        figures.wrong_yes += verdict.answer == "yes" and meaning != "yes"
        figures.lost_answers += verdict.answer == "unsure" and meaning in ("yes", "no")


def measure(answers: int, seed: int) -> dict[str, Any]:
    """Make runs until the servers have given this many chat answers and this many image answers."""
    figures, start = Figures(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, _serving(seed) as address:
        runner, number = _Runner(address, Path(folder)), 0
        with ThreadPoolExecutor(_RUNS_AT_ONCE) as pool:
            while min((counts := _log(address)["counts"]).get(kind, 0) for kind in ("chat", "images")) < answers:
                print(f"{figures.runs} runs, {dict(counts)}", file=sys.stderr, flush=True)
                results = list(pool.map(runner.run, range(number, number + 40)))
                number += len(results)
                log = _log(address)
                for prompt, output, trace in results:
                    _note(figures, prompt, output, trace, log)
        counts = _log(address)["counts"]
    return {
        "chat_answers": counts["chat"],
        "image_answers": counts["images"],
        "runs": figures.runs,
        "outcomes": dict(figures.outcomes),
        "failed_though_readable": figures.failed_though_readable,
        "wrong_yes": figures.wrong_yes,
        "lost_answers": figures.lost_answers,
        "tracebacks": figures.tracebacks,
        "examples": figures.examples[:20],
        "seconds": round(time.perf_counter() - start, 1),
        "is_sound": figures.is_sound,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000, help="chat answers, and image answers, at least")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    report = measure(args.answers, args.seed)
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["is_sound"] else 1)


if __name__ == "__main__":
    main()
