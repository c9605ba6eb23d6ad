"""Does the agent teach itself a skill that helps, and do trials reject those that do not?

    python benchmarks/skill_learning.py --out /tmp/skill-learning

A cold start: no skills, an empty memory, and a family of prompts at which ``pocket`` is weak, many things at once. Runs
are made and remembered; ``gems skills learn`` drafts skills and tries them out, judged by the verifier. Then fresh
prompts of the family are drawn with the promoted skills and without them, from the same seeds and with the same number
of images; here the oracle judges. Last, two skills are put into quarantine by hand, one that changes little and one
that undoes what was learned, and go through the same trial. Differences are paired. If it is killed, the same command
continues. Printed as JSON.

Runs recall nothing from each other unless ``--recall`` is given: a planner that recalls how the last prompt was worded
words the next one in the same way from the start, and no contrast within a run remains to learn from.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from experiment_runs import judged_by_oracle, run_pass

from gems.evals.analysis import Judged, analyse, compare
from gems.evals.arms import Arm, Comparison
from gems.evals.prompts import EvalPrompt, fresh_prompts
from gems.evals.runner import EvaluationPlan, prepare_folder
from gems.evals.scorers import Oracle
from gems.graph.context import GemsContext
from gems.learning.shelf import add_draft, learned_skills
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore

THINGS: Final = 6
"""The least number of things, of two kinds or more, that a prompt of the family asks for: pocket is weak at these."""
USELESS: Final = "1. Say that the number is meant: `{exactly}`."
HARMFUL: Final = "1. Keep it short: the wish in one plain sentence, and nothing besides: `{plain}`."


def main() -> None:
    """Run everything, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="runs to learn from")
    parser.add_argument("--n", type=int, default=500, help="fresh prompts to measure with")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--images", type=int, default=5, help="maximum images for each prompt")
    parser.add_argument("--gate", type=int, default=150, help="maximum prompts in the trial of a skill")
    parser.add_argument("--recall", type=int, default=0, help="experiences that each run recalls from earlier ones")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("gems-eval/skill-learning"))
    args = parser.parse_args()
    out = args.out.absolute()
    os.environ["GEMS_HOME"], os.environ["XDG_CONFIG_HOME"] = str(out / "home"), str(out / "config")

    family = crowded(args.runs + args.n, args.seed)
    first_prompts, new_prompts = family[: args.runs], family[args.runs :]
    cold_context = GemsContext(seed=args.seed, builtin_skills=False, max_rounds=args.images, patience=args.images)
    recalling = cold_context.model_copy(update={"memories": args.recall, "skills": False})
    experience = plan_of("Cold start", first_prompts, recalling, args, out)
    memory = FaissStore(out / "home" / "memory", embedder=init_embedder())
    run_concurrency = 1 if args.recall else args.concurrency  # runs that recall each other run one after another
    run_pass(experience, "runs", recalling, concurrency=run_concurrency, store=memory)
    learning = learn(args)

    promoted = [entry.name for entry in learned_skills() if entry.state == "promoted"]
    plan = plan_of("Fresh prompts", new_prompts, cold_context, args, out)
    arms: dict[str, list[Judged]] = {}
    for images in (1, args.images):
        context = cold_context.model_copy(update={"memory": False, "max_rounds": images, "patience": images})
        for name, settings in (("with", {}), ("without", {"without_skills": tuple(promoted)})):
            arm = f"{name}, {images} image{'s' if images > 1 else ''}"
            rows = run_pass(plan, arm, context.model_copy(update=settings), concurrency=args.concurrency)
            arms[arm] = judged_by_oracle(plan.prompts, rows, Oracle(plan.out))
    print(json.dumps({"learned": learning, "fresh": report(arms, args.images), "by hand": by_hand(args)}, indent=1))


def crowded(n: int, seed: int) -> list[EvalPrompt]:
    """``n`` fresh prompts of the family."""
    prompts = [p for p in fresh_prompts(8 * n, seed) if things_in(p) >= THINGS and kinds_in(p) > 1]
    return prompts[:n]


def kinds_in(prompt: EvalPrompt) -> int:
    """The number of groups of things that a prompt asks for."""
    return sum(q.skill == "object" for q in prompt.questions)


def things_in(prompt: EvalPrompt) -> int:
    """The number of things that a prompt asks for."""
    numbers = ("one", "two", "three", "four", "five", "six", "seven")
    return sum(numbers.index(q.answer) + 1 for q in prompt.questions if q.skill == "count")


def plan_of(name: str, prompts: list[EvalPrompt], context: GemsContext, args: Any, out: Path) -> EvaluationPlan:
    """A plan of prompts and seeds, in a folder of its own."""
    folder = out / name.lower().replace(" ", "-")
    plan = EvaluationPlan(name, tuple(prompts), (), context, args.seed, args.images, folder)
    prepare_folder(plan)
    return plan


def learn(args: Any) -> dict[str, Any]:
    """Run ``gems skills learn`` as a user would."""
    command = ["skills", "learn", "--no-builtin-skills", "--json", f"--prompts={args.gate}"]
    process = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "gems", *command, f"--concurrency={args.concurrency}"],
        stdout=subprocess.PIPE,
        check=True,
    )
    report: dict[str, Any] = json.loads(process.stdout)
    for entry in learned_skills():  # include those whose trial was in an earlier call
        if entry.name not in [row["name"] for row in report["learned"]]:
            about = {"state": entry.state, "version": entry.version, "kind": entry.kind, "gate": entry.figures}
            report["learned"].append({"name": entry.name, **about})
    return report


def by_hand(args: Any) -> list[dict[str, Any]]:
    """Try out a useless draft and a harmful one."""
    for name, body in (("say-exactly", USELESS), ("keep-it-short", HARMFUL)):
        if name not in [entry.name for entry in learned_skills()]:
            about = {"gems-kind": "count", "gems-generator": "pocket"}
            add_draft(name, "Use when the wish asks for a definite number of things.", body, about, {})
    learn(args)
    return [
        {"name": entry.name, "state": entry.state, "gate": {k: v for k, v in entry.figures.items() if k != "tried"}}
        for entry in learned_skills()
        if entry.name in ("say-exactly", "keep-it-short")
    ]


def report(arms: dict[str, list[Judged]], images: int) -> dict[str, Any]:
    """The figures of each arm, and the paired differences at equal numbers of images."""
    keys = ("all_correct", "ci95", "images_per_prompt", "chat_calls_per_prompt")
    figures = {name: analyse(Arm(name, ""), results, images) for name, results in arms.items()}
    names = list(arms)
    pairs = [Comparison(names[i], names[i + 1], "How much does the learned skill help?") for i in (0, 2)]
    return {
        "arms": {name: {key: figure[key] for key in keys} for name, figure in figures.items()},
        "comparisons": [compare(pair, arms) for pair in pairs],
    }


if __name__ == "__main__":
    main()
