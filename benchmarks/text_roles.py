"""A real language model in the text roles, with the pocket model as verifier: are its answers valid, and does it help?

    python benchmarks/text_roles.py --model openai:qwen --base-url http://127.0.0.1:8765/v1 --n 100 --out text-roles

Planner, decomposer and refiner use the model; generator and verifier are the pocket ones. The same fresh prompts are
drawn once as they are (``single``), by the loop, and by the loop with skills and a memory that begins empty, from the
same seeds; the oracle judges. An arm with a memory runs one prompt at a time.
Structured answers are counted by role: valid at once, after one repair, in part (cut off, with the complete part used),
or not at all. A plan that ends a talk about skills is not counted; what cannot be read there is asked for again, and
counted then. If it is killed, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import logging
import threading
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from experiment_runs import judged_by_oracle
from langgraph.runtime import RunControl

from gems.cli.console import batch_bar
from gems.evals.analysis import Judged, compare
from gems.evals.arms import Comparison, choose_arms
from gems.evals.prompts import fresh_prompts
from gems.evals.runner import EvaluationPlan, prepare_folder, run_arm
from gems.evals.scorers import Oracle
from gems.graph.context import GemsContext
from gems.options import ChatOptions
from gems.stats import bootstrap_interval

ARMS: Final = ("single", "loop", "loop+memory+skills")
ROLES: Final = {"Plan": "planner", "Requirements": "decomposer", "Refinement": "refiner"}


class AnswerCounter(logging.Handler):
    """Records each structured answer of a text role, as logged by ``gems.nodes.ask``, in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path, self._lock = path, threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line for one answer."""
        form = getattr(record, "form", "")
        if form in ROLES:
            line = {"role": ROLES[form], "tries": vars(record)["tries"], "in_part": vars(record)["in_part"]}
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def table(self) -> dict[str, Counter[str]]:
        """By role, how many answers were valid at once, after a repair, in part, or not at all."""
        counts: dict[str, Counter[str]] = {role: Counter() for role in ROLES.values()}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            entry = json.loads(line)
            kind = "in_part" if entry["in_part"] else ("invalid", "at_once", "after_a_repair")[entry["tries"]]
            counts[entry["role"]][kind] += 1
        return counts


def main() -> None:
    """Run the arms, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="openai:qwen", help="chat model of the text roles")
    parser.add_argument("--base-url", default="http://127.0.0.1:8765/v1", help="base URL of the model's server")
    parser.add_argument("--max-tokens", type=int, default=600, help="maximum tokens of one answer")
    parser.add_argument("--arms", default=",".join(ARMS), help="arms to run; each is compared with those before it")
    parser.add_argument("--n", type=int, default=100, help="fresh prompts")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--images", type=int, default=3, help="maximum images for each prompt")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("gems-eval/text-roles"))
    args = parser.parse_args()

    settings = {"base_url": args.base_url, "temperature": 0, "max_tokens": args.max_tokens, "timeout": 600}
    options = ChatOptions(**({} if args.model == "pocket" else settings))  # pocket answers by rules, and has none
    roles = dict.fromkeys(("planner", "decomposer", "refiner"), args.model)
    context = GemsContext(seed=args.seed, chat_options=options, **roles).as_operator()
    arms = choose_arms(args.arms.split(","), ["pocket"], args.images)
    plan = EvaluationPlan(
        "Text roles",
        tuple(fresh_prompts(args.n, args.seed)),
        tuple(arms),
        context,
        args.seed,
        args.images,
        args.out,
    )
    prepare_folder(plan)
    counter = AnswerCounter(args.out / "answers.jsonl")
    log = logging.getLogger("gems.nodes.ask")
    log.setLevel(logging.DEBUG)
    log.addHandler(counter)

    oracle, judged = Oracle(args.out), dict[str, list[Judged]]()
    for arm in arms:
        with batch_bar(args.n, what=arm.name, quiet=False) as (on_start, on_done):
            rows = run_arm(
                plan, arm, concurrency=args.concurrency, control=RunControl(), on_start=on_start, on_done=on_done
            )
        judged[arm.name] = judged_by_oracle(plan.prompts, rows, oracle, arm.generator)
    print(json.dumps(_report(judged, counter), indent=1))


def _report(judged: dict[str, list[Judged]], counter: AnswerCounter) -> dict[str, Any]:
    answers = {
        role: {
            "answers": kinds.total(),
            "valid_at_once": kinds["at_once"],
            "valid_after_a_repair": kinds["after_a_repair"],
            "valid_in_part": kinds["in_part"],
            "valid": round(1 - kinds["invalid"] / max(1, kinds.total()), 4),
        }
        for role, kinds in counter.table().items()
    }
    right = {name: [float(j.all_correct) for j in results] for name, results in judged.items()}
    rates = {
        name: {"all_correct": sum(r) / len(r), "ci95": bootstrap_interval(r), "prompts": len(r)}
        for name, r in right.items()
    }
    paired = {
        f"{better} against {than}": compare(Comparison(better, than, "Does it pay with this model?"), judged)
        for than, better in combinations(judged, 2)
    }
    return {"answers": answers, "arms": rates} | paired


if __name__ == "__main__":
    main()
