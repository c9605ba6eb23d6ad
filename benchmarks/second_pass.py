"""Does a memory of one pass help the next one over similar prompts? And does one of something else do harm?

    python benchmarks/second_pass.py --n 500 --out /tmp/second-pass

A first pass over fresh prompts fills a memory. A second pass over other fresh prompts, of the same vocabulary, is run
four times from the same seeds: without a memory; with the first pass's; with one of another domain (landscapes,
portraits and the like, with prompts and lessons of their own); and with that one though nothing in it is near enough to
be recalled. In the second pass memories are only read: what is measured is what the first pass left behind. The oracle
judges, and differences are paired. Killed and started again, it goes on. Printed as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, Final

from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore, Op, PutOp, Result, SearchItem
from passes import judged_by_oracle, run_pass

from gems.cli.console import batch_bar
from gems.evals.analysis import Judged, analyse, compare
from gems.evals.arms import Arm, Comparison
from gems.evals.prompts import EvalPrompt, fresh_prompts
from gems.evals.runner import EvaluationPlan, prepare_folder, run_arm
from gems.evals.scorers import Oracle
from gems.graph.context import GemsContext
from gems.graph.state import ImageRef
from gems.memory.embedder import init_embedder
from gems.memory.experience import remember
from gems.memory.store import FaissStore
from gems.memory.trajectory import PastAttempt, Trajectory
from gems.wording import content_words

SUBJECTS: Final = (
    "a mountain lake at dawn",
    "the portrait of an old fisherman",
    "a crowded night market in the rain",
    "an empty railway station",
    "a Gothic cathedral",
    "a city on another planet",
    "the hands of a potter at work",
    "a storm over wheat fields",
    "a library that never ends",
    "a glass of water on a windowsill",
)
STYLES: Final = (
    "as a watercolor",
    "in the style of a woodcut",
    "as a film still",
    "in oil, impasto",
    "as an isometric drawing",
    "in black and white",
    "as a poster with the word SALE",
    "in long exposure",
    "in pastel colours",
    "as a charcoal sketch",
)
LESSON: Final = "Name the light and the lens; leave out the word 'photo'. Grain and a low horizon made it right."


class ReadOnly(BaseStore):
    """A store whose writes are dropped.

    Args:
        store: What is read.
        near: Whether everything that is found counts as near, however far it is.
    """

    def __init__(self, store: BaseStore, *, near: bool = False) -> None:
        self._store, self._near = store, near

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """See ``BaseStore``."""
        ops = list(ops)
        found = iter(self._store.batch([op for op in ops if not isinstance(op, PutOp)]))
        return [None if isinstance(op, PutOp) else self._lifted(next(found)) for op in ops]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """See ``BaseStore``."""
        return self.batch(ops)

    def _lifted(self, result: Result) -> Result:
        if not self._near or not isinstance(result, list):
            return result
        for item in result:
            if isinstance(item, SearchItem) and item.score is not None:
                item.score = 0.5 + item.score / 2
        return result


def main() -> None:
    """Run both passes, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="fresh prompts in each pass")
    parser.add_argument("--seed", type=int, default=7, help="of the first pass; the second has the next one")
    parser.add_argument("--images", type=int, default=5, help="most images a prompt")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("gems-eval/second-pass"))
    given = parser.parse_args()

    settings = {"memory": True, "skills": False, "max_rounds": given.images}
    first = Arm("loop+memory", "the first pass, which fills a memory", settings=settings)
    learning = plan_of("First pass", fresh_prompts(given.n, given.seed), first, given.seed, given)
    again = others(fresh_prompts(2 * given.n, given.seed + 1), learning.prompts)[: given.n]
    second = plan_of("Second pass", again, first, given.seed + 1, given)
    prepare_folder(learning)
    prepare_folder(second)

    oracle = Oracle(second.out)
    with batch_bar(given.n, what="first pass", quiet=False) as (on_start, on_done):
        rows = run_arm(learning, first, concurrency=1, control=RunControl(), on_start=on_start, on_done=on_done)
    judged = {"first pass": judged_by_oracle(learning.prompts, rows, Oracle(learning.out))}
    own = FaissStore(learning.folder(first) / "memory", embedder=init_embedder())
    foreign = FaissStore(second.out / "foreign", embedder=init_embedder())
    remember_another_domain(foreign, learning.context)
    stores = {
        "without memory": None,
        "with the first pass": ReadOnly(own),
        "with another domain": ReadOnly(foreign),
        "told of another domain": ReadOnly(foreign, near=True),
    }
    for name, store in stores.items():
        context = second.context_of(first).model_copy(update={"memory": store is not None})
        rows = run_pass(second, name, context, concurrency=given.concurrency, store=store)
        judged[name] = judged_by_oracle(second.prompts, rows, oracle)
    print(json.dumps(report(judged, first, given.images), indent=1))


def plan_of(
    benchmark: str, prompts: list[EvalPrompt], arm: Arm, seed: int, given: argparse.Namespace
) -> EvaluationPlan:
    """One pass, in a folder of its own."""
    folder = given.out / benchmark.lower().replace(" ", "-")
    return EvaluationPlan(benchmark, tuple(prompts), (arm,), GemsContext(seed=seed), seed, given.images, folder)


def others(prompts: list[EvalPrompt], known: Iterable[EvalPrompt]) -> list[EvalPrompt]:
    """Those prompts that are not among the known ones, not even in other spelling."""
    asked = {tuple(content_words(p.prompt)) for p in known}
    return [p for p in prompts if tuple(content_words(p.prompt)) not in asked]


def remember_another_domain(store: BaseStore, context: GemsContext) -> None:
    """A hundred runs about things that the second pass never asks for."""
    image = ImageRef(uri="file:///nowhere.png", sha256="0" * 64, width=1, height=1)
    for number, (subject, style) in enumerate(product(SUBJECTS, STYLES)):
        prompts = (f"{subject} {style}", f"{subject} {style}, low horizon, grain, golden light, 35 mm")
        attempts = [
            PastAttempt(prompt=p, seed=i, strategy="plan", score=0.5 + i / 4, failed=["Is it sharp?"][i:], image=image)
            for i, p in enumerate(prompts)
        ]
        run = Trajectory(
            prompt=prompts[0],
            solved=True,
            outcome="solved",
            score=0.75,
            best_prompt=prompts[1],
            experience=LESSON,
            kinds=["object", "style"],
            failed=[],
            skills=[],
            rounds=2,
            images=2,
            mllm=context.mllm,
            generator=context.generator,
            attempts=attempts,
        )
        remember(store, context.user, f"foreign-{number}", run)


def report(judged: dict[str, list[Judged]], arm: Arm, images: int) -> dict[str, Any]:
    """Figures of each pass, and the paired differences."""
    figures = {}
    for name, results in judged.items():
        found = analyse(arm, results, images)
        recalled = [len(j.row.get("memories", [])) for j in results]
        figures[name] = {
            **{k: found[k] for k in ("all_correct", "ci95", "images_per_prompt", "chat_calls_per_prompt")},
            "recalled_per_prompt": round(sum(recalled) / len(recalled), 2),
        }
    questions = [
        Comparison("with the first pass", "without memory", "Does the first pass help the second?"),
        Comparison("with another domain", "without memory", "Does a memory of something else do harm?"),
        Comparison("told of another domain", "without memory", "Even if it is recalled?"),
    ]
    return {"passes": figures, "comparisons": [compare(question, judged) for question in questions]}


if __name__ == "__main__":
    main()
