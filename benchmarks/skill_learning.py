"""Does the agent teach itself a skill that helps, and does the gate refuse those that do not?

    python benchmarks/skill_learning.py --out /tmp/skill-learning

A cold start: no skills at all, an empty memory, and a family of prompts at which ``pocket`` is weak, many things at
once. Runs are made and remembered; ``gems skills learn`` drafts skills, and gates them on the verifier's word. Then
fresh prompts of the family, which no run has seen, are drawn with what was promoted and without, from the same seeds
and with as many images; here the oracle judges. Last, two skills are put into quarantine by hand, one that changes
little and one that undoes what was learned, and go through the same gate. Differences are paired.
Killed and started again, it goes on. Printed as JSON.

Runs recall nothing of each other unless ``--recall`` is given: a planner that recalls how the last wish was worded
words the next one so from the start, and then there is no contrast left within a run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from passes import judged_by_oracle, run_pass

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
"""How many things a prompt of the family asks for at least, of two kinds or more: what pocket is weak at."""
USELESS: Final = "1. Say that the number is meant: `{exactly}`."
HARMFUL: Final = "1. Keep it short: the wish in one plain sentence, and nothing besides: `{plain}`."


def main() -> None:
    """Run it all, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="runs to learn from")
    parser.add_argument("--n", type=int, default=500, help="fresh prompts to measure on")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--images", type=int, default=5, help="most images a prompt, while learning and measuring")
    parser.add_argument("--gate", type=int, default=150, help="wishes that a skill is gated on, at most")
    parser.add_argument("--recall", type=int, default=0, help="experiences that each run recalls of those before it")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("gems-eval/skill-learning"))
    given = parser.parse_args()
    out = given.out.absolute()
    os.environ["GEMS_HOME"], os.environ["XDG_CONFIG_HOME"] = str(out / "home"), str(out / "config")

    family = crowded(given.runs + given.n, given.seed)
    before, fresh = family[: given.runs], family[given.runs :]
    cold = GemsContext(seed=given.seed, builtin_skills=False, max_rounds=given.images, patience=given.images)
    experience = plan_of("Cold start", before, cold, given, out)
    recalling = cold.model_copy(update={"memories": given.recall})
    memory = FaissStore(out / "home" / "memory", embedder=init_embedder())
    in_turn = 1 if given.recall else given.concurrency  # where runs learn from each other, one after another
    run_pass(experience, "runs", recalling, concurrency=in_turn, store=memory)
    taught = learn(given)

    own = [skill.name for skill in learned_skills() if skill.state == "promoted"]
    plan = plan_of("Fresh prompts", fresh, cold, given, out)
    arms: dict[str, list[Judged]] = {}
    for images in (1, given.images):
        context = cold.model_copy(update={"memory": False, "max_rounds": images, "patience": images})
        for name, settings in (("with", {}), ("without", {"without_skills": tuple(own)})):
            arm = f"{name}, {images} image{'s' if images > 1 else ''}"
            rows = run_pass(plan, arm, context.model_copy(update=settings), concurrency=given.concurrency)
            arms[arm] = judged_by_oracle(plan.prompts, rows, Oracle(plan.out))
    print(json.dumps({"learned": taught, "fresh": report(arms, given.images), "by hand": by_hand(given)}, indent=1))


def crowded(n: int, seed: int) -> list[EvalPrompt]:
    """Fresh prompts of the family."""
    found = [p for p in fresh_prompts(8 * n, seed) if things_in(p) >= THINGS and kinds_in(p) > 1]
    return found[:n]


def kinds_in(prompt: EvalPrompt) -> int:
    """How many groups of things it asks for."""
    return sum(q.skill == "object" for q in prompt.questions)


def things_in(prompt: EvalPrompt) -> int:
    """How many things it asks for."""
    numbers = ("one", "two", "three", "four", "five", "six", "seven")
    return sum(numbers.index(q.answer) + 1 for q in prompt.questions if q.skill == "count")


def plan_of(name: str, prompts: list[EvalPrompt], context: GemsContext, given: Any, out: Path) -> EvaluationPlan:
    """Prompts and seeds, in a folder of their own."""
    folder = out / name.lower().replace(" ", "-")
    plan = EvaluationPlan(name, tuple(prompts), (), context, given.seed, given.images, folder)
    prepare_folder(plan)
    return plan


def learn(given: Any) -> dict[str, Any]:
    """``gems skills learn``, as a user would call it."""
    command = ["skills", "learn", "--no-builtin-skills", "--json", f"--prompts={given.gate}"]
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "gems", *command, f"--concurrency={given.concurrency}"],
        stdout=subprocess.PIPE,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    for skill in learned_skills():  # a skill that was tried in an earlier call is reported too
        about = {"state": skill.state, "version": skill.version, "kind": skill.kind, "gate": skill.figures}
        row = {"name": skill.name, **about}
        if skill.name not in [other["name"] for other in answer["learned"]]:
            answer["learned"].append(row)
    return answer


def by_hand(given: Any) -> list[dict[str, Any]]:
    """A useless draft and a harmful one at the gate."""
    for name, body in (("say-exactly", USELESS), ("keep-it-short", HARMFUL)):
        if name not in [skill.name for skill in learned_skills()]:
            about = {"gems-kind": "count", "gems-generator": "pocket"}
            add_draft(name, "Use when the wish asks for a definite number of things.", body, about, {})
    learn(given)
    return [
        {"name": skill.name, "state": skill.state, "gate": {k: v for k, v in skill.figures.items() if k != "tried"}}
        for skill in learned_skills()
        if skill.name in ("say-exactly", "keep-it-short")
    ]


def report(arms: dict[str, list[Judged]], images: int) -> dict[str, Any]:
    """Figures of each arm, and the paired differences at equal numbers of images."""
    kept = ("all_correct", "ci95", "images_per_prompt", "chat_calls_per_prompt")
    figures = {name: analyse(Arm(name, ""), found, images) for name, found in arms.items()}
    names = list(arms)
    pairs = [Comparison(names[i], names[i + 1], "What does the learned skill bring?") for i in (0, 2)]
    return {
        "arms": {name: {k: found[k] for k in kept} for name, found in figures.items()},
        "comparisons": [compare(pair, arms) for pair in pairs],
    }


if __name__ == "__main__":
    main()
