"""Skills as LangChain tools, to be bound to the planner and run by LangGraph's ToolNode."""

from __future__ import annotations

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel

from gems.skills.loader import Skill, SkillLibrary

__all__ = ["skill_tools"]


class NoArguments(BaseModel):
    """A skill is read, not run: it takes nothing."""


def skill_tools(library: SkillLibrary) -> list[BaseTool]:
    """One tool per skill: the planner sees name and description, and gets the body when it calls it."""
    return [_tool(skill) for skill in library.skills.values()]


def _tool(skill: Skill) -> BaseTool:
    def read() -> str:
        return f"Advice of the skill {skill.name} on writing the prompt:\n\n{skill.body}"

    return StructuredTool.from_function(read, name=skill.name, description=skill.description, args_schema=NoArguments)
