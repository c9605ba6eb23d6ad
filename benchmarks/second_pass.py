"""Does the memory of one pass help the next one over similar prompts, and does an unrelated memory do harm?

    python benchmarks/second_pass.py --n 500 --out /tmp/second-pass

A first pass over fresh prompts fills a memory. A second pass over other fresh prompts of the same vocabulary runs four
times from the same seeds: without a memory; with the first pass's; with one from another domain (landscapes, portraits
and the like, with prompts and lessons of their own); and with that one again, forced to be recalled although nothing in
it is similar enough. With ``--other-model``, it runs once more with what that image model learned from the prompts of
the first pass, recalled as if it were the model's own. The second pass only reads its memories, so that only what was
left behind before it is measured. The oracle judges, and differences are paired. If it is killed, the same command
continues. Printed as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, Final

from experiment_runs import judged_by_oracle, run_pass
from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore, Op, PutOp, Result, SearchItem, SearchOp

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
    """A store that drops all writes.

    Args:
        store: The store to read from.
        near: Whether to raise the score of every result, so that it counts as similar.
        as_of: The image model that every experience is said to be of; None for the one that it is of.
    """

    def __init__(self, store: BaseStore, *, near: bool = False, as_of: str | None = None) -> None:
        self._store, self._near, self._as_of = store, near, as_of

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """See ``BaseStore``."""
        ops = list(ops)
        reads = [self._of_any_model(op) for op in ops if not isinstance(op, PutOp)]
        results = iter(self._store.batch(reads))
        return [None if isinstance(op, PutOp) else self._changed(next(results)) for op in ops]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """See ``BaseStore``."""
        return self.batch(ops)

    def _of_any_model(self, op: Op) -> Op:
        return op._replace(filter=None) if self._as_of and isinstance(op, SearchOp) else op

    def _changed(self, result: Result) -> Result:
        for item in result if isinstance(result, list) else []:
            if isinstance(item, SearchItem) and item.score is not None:
                if self._near:
                    item.score = 0.5 + item.score / 2
                if self._as_of:
                    item.value["generator"] = self._as_of
        return result


def main() -> None:
    """Run both passes, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="fresh prompts in each pass (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the first pass; the second uses the next seed")
    parser.add_argument("--images", type=int, default=5, help="maximum images for each prompt")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("gems-eval/second-pass"))
    parser.add_argument("--other-model", help="an image model whose memory is measured too, such as pocket-large")
    args = parser.parse_args()

    settings = {"memory": True, "skills": False, "max_rounds": args.images}
    first = Arm("loop+memory", "the first pass, which fills a memory", settings=settings)
    learning = plan_of("First pass", fresh_prompts(args.n, args.seed), first, args.seed, args)
    second_prompts = without_known(fresh_prompts(2 * args.n, args.seed + 1), learning.prompts)[: args.n]
    second = plan_of("Second pass", second_prompts, first, args.seed + 1, args)
    prepare_folder(learning)
    prepare_folder(second)

    oracle = Oracle(second.out)
    with batch_bar(args.n, what="first pass", quiet=False) as (on_start, on_done):
        rows = run_arm(learning, first, concurrency=1, control=RunControl(), on_start=on_start, on_done=on_done)
    judged = {"first pass": judged_by_oracle(learning.prompts, rows, Oracle(learning.out))}
    own_memory = FaissStore(learning.folder(first) / "memory", embedder=init_embedder())
    foreign_memory = FaissStore(second.out / "foreign", embedder=init_embedder())
    remember_another_domain(foreign_memory, learning.context)
    stores = {
        "without memory": None,
        "with the first pass": ReadOnly(own_memory),
        "with another domain": ReadOnly(foreign_memory),
        "told of another domain": ReadOnly(foreign_memory, near=True),
    }
    if args.other_model:
        stores["with another model's"] = memory_of(args.other_model, learning, settings)
    for name, store in stores.items():
        context = second.context_of(first).model_copy(update={"memory": store is not None})
        rows = run_pass(second, name, context, concurrency=args.concurrency, store=store)
        judged[name] = judged_by_oracle(second.prompts, rows, oracle)
    print(json.dumps(report(judged, first, args.images), indent=1))


def memory_of(generator: str, plan: EvaluationPlan, settings: dict[str, Any]) -> BaseStore:
    """What another image model learns from a plan's prompts, as if the plan's own model had learned it."""
    arm = Arm("other", "the first pass with another image model", generator=generator, settings=settings)
    with batch_bar(len(plan.prompts), what=generator, quiet=False) as (on_start, on_done):
        run_arm(plan, arm, concurrency=1, control=RunControl(), on_start=on_start, on_done=on_done)
    return ReadOnly(FaissStore(plan.folder(arm) / "memory", embedder=init_embedder()), as_of=plan.context.generator)


def plan_of(benchmark: str, prompts: list[EvalPrompt], arm: Arm, seed: int, args: argparse.Namespace) -> EvaluationPlan:
    """The plan of one pass, in a folder of its own."""
    folder = args.out / benchmark.lower().replace(" ", "-")
    return EvaluationPlan(benchmark, tuple(prompts), (arm,), GemsContext(seed=seed), seed, args.images, folder)


def without_known(prompts: list[EvalPrompt], known_prompts: Iterable[EvalPrompt]) -> list[EvalPrompt]:
    """The prompts that are not among the known ones, compared by their content words."""
    known_words = {tuple(content_words(p.prompt)) for p in known_prompts}
    return [p for p in prompts if tuple(content_words(p.prompt)) not in known_words]


def remember_another_domain(store: BaseStore, context: GemsContext) -> None:
    """Remember a hundred runs about things that the second pass never asks for."""
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
    """The figures of each pass, and the paired differences."""
    figures = {}
    for name, results in judged.items():
        analysis = analyse(arm, results, images)
        recalled = [len(j.row.get("memories", [])) for j in results]
        figures[name] = {
            **{k: analysis[k] for k in ("all_correct", "ci95", "images_per_prompt", "chat_calls_per_prompt")},
            "recalled_per_prompt": round(sum(recalled) / len(recalled), 2),
        }
    questions = [
        Comparison("with the first pass", "without memory", "Does the first pass help the second?"),
        Comparison("with another model's", "without memory", "Does the memory of another image model help?"),
        Comparison("with another model's", "with the first pass", "How does it compare with the model's own?"),
        Comparison("with another domain", "without memory", "Does an unrelated memory do harm?"),
        Comparison("told of another domain", "without memory", "Does it do harm even if it is recalled?"),
    ]
    comparisons = [compare(question, judged) for question in questions if question.better in judged]
    return {"passes": figures, "comparisons": comparisons}


if __name__ == "__main__":
    main()
