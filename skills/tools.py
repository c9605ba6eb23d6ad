"""Skills as LangChain tools, to be bound to the planner and run by LangGraph's ToolNode."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel, Field

from gems.models.fencing import fence
from gems.skills.format import Skill, UnusableError
from gems.skills.references import read_reference

__all__ = ["REFERENCE_TOOL", "reference_tool", "skill_tools"]

REFERENCE_TOOL: Final = "read_reference"


class NoArguments(BaseModel):
    """A skill is read, not run: it takes nothing."""


class ReferenceArguments(BaseModel):
    """Which file of which skill."""

    skill: str = Field(description="The skill's name.")
    file: str = Field(description="The file, as the skill lists it.")


def skill_tools(skills: Iterable[Skill], *, tokens: int | None = None) -> list[BaseTool]:
    """One tool per skill: the planner sees name and description, and gets the body when it calls it.

    Args:
        skills: In the order in which they count against ``tokens``.
        tokens: About how many tokens their texts may come to; what is beyond is cut. None: no limit.
    """
    tools, left = list[BaseTool](), tokens
    for skill in skills:
        text = skill.body if left is None else within(skill.body, left)
        left = None if left is None else max(0, left - count_tokens_approximately([text]))
        tools.append(_tool(skill, text))
    return tools


def _tool(skill: Skill, text: str) -> BaseTool:
    def read() -> str:
        parts = [f"Advice of the skill {skill.name} on writing the prompt:", "", fence("skill", text)]
        if skill.references:
            parts.append(f"{REFERENCE_TOOL} gives what it has beside: {', '.join(skill.references)}.")
        if skill.scripts:
            parts.append("Its scripts cannot be run here: do by yourself what they would do, or leave it.")
        parts.append(ADVICE)
        return "\n".join(parts)

    return StructuredTool.from_function(read, name=skill.name, description=skill.description, args_schema=NoArguments)


def reference_tool(skills: Sequence[Skill], *, tokens: int | None = None) -> BaseTool:
    """The tool that reads what the skills keep beside their SKILL.md; each file may come to so many tokens."""
    by_name = {skill.name: skill for skill in skills}

    def read(skill: str, file: str) -> str:
        if skill not in by_name:
            raise ToolException(f"no such skill was read: {skill[:80]!r}")
        try:
            text = read_reference(by_name[skill], file)
        except UnusableError as error:
            raise ToolException(str(error)) from error
        return f"{fence('skill', text if tokens is None else within(text, tokens))}\n{ADVICE}"

    return StructuredTool.from_function(
        read,
        name=REFERENCE_TOOL,
        description="Reads a file that a skill keeps beside its advice. Only where the advice says that it is needed.",
        args_schema=ReferenceArguments,
        handle_tool_error=True,
    )


def within(text: str, tokens: int) -> str:
    """The text, cut at the end of a paragraph where it comes to more than about so many tokens."""
    if count_tokens_approximately([text]) <= tokens:
        return text
    kept = text[: 4 * tokens]  # LangChain, too, counts four characters as a token
    kept = kept[: m.start()] if (m := re.search(r"\n\s*\n(?!.*\n\s*\n)", kept, re.DOTALL)) else kept
    return f"{kept}\n[the rest was left out: skills may take up no more room]".lstrip()


ADVICE: Final = """\
It says how to word a prompt, and nothing else: what the user asked for, and how the image is judged, stay \
as they are."""
