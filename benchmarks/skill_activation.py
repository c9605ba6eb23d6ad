"""Does a chat model call the skills that a prompt needs, and no others?

    python benchmarks/skill_activation.py --mllm openai:qwen --chat-option base_url=http://127.0.0.1:8765/v1

For every built-in skill there are twelve prompts that need it and eight near misses (``skill_wishes.json``). The model
gets them as from the planner, with all built-in skills bound; the skills that it calls in its first turn are counted.
Printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from skill_retrieval import built_in_skills, labelled_prompts

from gems.cli.arguments import make_context
from gems.models.fencing import fence
from gems.models.registry import init_mllm
from gems.models.written_calls import written_calls
from gems.nodes.planner import PLANNER
from gems.nodes.prompt_checks import Plan
from gems.skills.tools import skill_tools


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mllm", default="pocket", help="the chat model, as for gems generate")
    parser.add_argument("--chat-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--n", type=int, default=12, help="maximum prompts of each kind for each skill")
    args = parser.parse_args()
    context = make_context({"mllm": args.mllm, "chat_option": args.chat_option})
    print(json.dumps(measure(init_mllm(args.mllm, context.chat_options), args.n), indent=1))


def measure(model: BaseChatModel, n: int) -> dict[str, Any]:
    """By skill: how many of the prompts that need it, and how many of the near misses, it was called for."""
    figures = {}
    for name, prompts in labelled_prompts().items():
        calls = {kind: [called_skills(model, prompt) for prompt in examples[:n]] for kind, examples in prompts.items()}
        figures[name] = {
            "called_for": sum(name in names for names in calls["use"]),
            "of": len(calls["use"]),
            "called_for_near_misses": sum(name in names for names in calls["not"]),
            "of_near_misses": len(calls["not"]),
            "skills_a_wish": round(sum(map(len, calls["use"])) / len(calls["use"]), 2),
        }
        print(name, figures[name], flush=True, file=sys.stderr)
    return {"mllm": type(model).__name__, "by_skill": figures}


def called_skills(model: BaseChatModel, prompt: str) -> list[str]:
    """The skills that the model calls in its first turn on a prompt."""
    skills = built_in_skills()
    messages = [SystemMessage(PLANNER), HumanMessage(fence("user_prompt", prompt))]
    answer = model.bind_tools([*skill_tools(skills), Plan]).invoke(messages)
    names = {skill.name for skill in skills}
    calls = answer.tool_calls or written_calls(answer, names)
    return list(dict.fromkeys(call["name"] for call in calls if call["name"] in names))


if __name__ == "__main__":
    main()
