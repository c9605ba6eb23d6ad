"""Does a chat model take the skills that a wish needs, and leave the others?

    python benchmarks/skill_activation.py --mllm openai:qwen --chat-option base_url=http://127.0.0.1:8765/v1

For every built-in skill there are twelve wishes that it is for and eight near misses (``skill_wishes.json``). The model
is asked as the planner asks it, with all built-in skills bound; what it calls at its first turn is counted. Printed as
JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from skill_retrieval import built_in_skills, labelled

from gems.cli.arguments import make_context
from gems.models.fencing import fence
from gems.models.registry import init_mllm
from gems.models.structured import written_calls
from gems.nodes.planner import PLANNER
from gems.nodes.prompt_checks import Plan
from gems.skills.tools import skill_tools


def main() -> None:
    """Ask, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mllm", default="pocket", help="the chat model, as for gems generate")
    parser.add_argument("--chat-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--n", type=int, default=12, help="wishes a skill, and of each sort, at most")
    given = parser.parse_args()
    context = make_context({"mllm": given.mllm, "chat_option": given.chat_option})
    print(json.dumps(measure(init_mllm(given.mllm, context.chat_options), given.n), indent=1))


def measure(model: BaseChatModel, n: int) -> dict[str, Any]:
    """By skill: of the wishes that it is for, how many it was called for; of the near misses, how many."""
    figures = {}
    for name, wishes in labelled().items():
        called = {sort: [wanted(model, wish) for wish in found[:n]] for sort, found in wishes.items()}
        figures[name] = {
            "called_for": sum(name in names for names in called["use"]),
            "of": len(called["use"]),
            "called_for_near_misses": sum(name in names for names in called["not"]),
            "of_near_misses": len(called["not"]),
            "skills_a_wish": round(sum(map(len, called["use"])) / len(called["use"]), 2),
        }
        print(name, figures[name], flush=True, file=sys.stderr)
    return {"mllm": type(model).__name__, "by_skill": figures}


def wanted(model: BaseChatModel, wish: str) -> list[str]:
    """The skills that the model calls first for a wish."""
    skills = built_in_skills()
    asked = [SystemMessage(PLANNER), HumanMessage(fence("user_prompt", wish))]
    answer = model.bind_tools([*skill_tools(skills), Plan]).invoke(asked)
    names = {skill.name for skill in skills}
    calls = answer.tool_calls or written_calls(answer, names)
    return list(dict.fromkeys(call["name"] for call in calls if call["name"] in names))


if __name__ == "__main__":
    main()
