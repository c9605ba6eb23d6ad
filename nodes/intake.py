"""Checks the input, and clears the state of an earlier run on the same thread."""

from __future__ import annotations

import random
import uuid
from typing import Annotated, Any, Final

from langchain_core.messages import HumanMessage, RemoveMessage
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from langgraph.types import Overwrite
from pydantic import Field, TypeAdapter, ValidationError

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import SCHEMA, GemsState, Turn, Usage
from gems.nodes.resources import Node, Resources
from gems.nodes.reuse import note_begun, solved_before
from gems.seeds import MAX_SEED
from gems.wording import check_prompt

__all__ = ["make_intake"]

_MAX_TURNS: Final = 20
_TURNS: Final = TypeAdapter(Annotated[list[Turn], Field(max_length=_MAX_TURNS)])


def make_intake(resources: Resources) -> Node:
    """The node that starts a run: a checked prompt, a run id, a seed, and empty accumulators.

    If reuse is on and an earlier run solved the same prompt, its image ends the run at once. Options that a model would
    ignore are refused here, before the first chat call.
    """

    def intake(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        context = resources.context(runtime)
        prompt, turns = check_prompt(state.get("prompt")), _turns(state.get("turns") or [])
        run_id = uuid.uuid4().hex[:12]
        note_begun(run_id)
        seed = random.randrange(MAX_SEED + 1) if context.seed is None else context.seed
        runtime.stream_writer({"event": "start", "run_id": run_id, "seed": seed})
        start = _empty(prompt, run_id, seed) | GemsState(turns=turns)
        if resources.thumbnails:
            start["messages"] = [*start["messages"], HumanMessage(prompt)]
        earlier = solved_before(resources, context, runtime, prompt) if context.reuse else GemsState()
        if "outcome" not in earlier:
            resources.check_options(context)
        return start | earlier

    return intake


def _turns(turns: Any) -> list[Turn]:
    """The earlier turns as objects; a server passes them on as JSON."""
    try:
        return _TURNS.validate_python(turns)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(map(str, ("turns", *first["loc"])))
        raise InputError(
            f"the input's {location}: {first['msg']}; give at most {_MAX_TURNS} earlier turns, and use gems.as_node if "
            "'turns' is a key of your own graph"
        ) from None


def _empty(prompt: str, run_id: str, seed: int) -> GemsState:
    return GemsState(
        schema=SCHEMA,
        prompt=prompt,
        run_id=run_id,
        seed=seed,
        memories=[],
        planning=[RemoveMessage(id=REMOVE_ALL_MESSAGES)],
        offered={},
        skills=[],
        requirements=[],
        checks=[],
        round=1,
        proposals=[],
        parts=[],
        refused=Overwrite([]),  # type: ignore[typeddict-item]
        undrawn=Overwrite([]),  # type: ignore[typeddict-item]
        in_review=False,
        review=None,
        messages=[RemoveMessage(id=REMOVE_ALL_MESSAGES)],
        attempts=Overwrite([]),  # type: ignore[typeddict-item]
        image=None,
        score=0.0,
        outcome=None,
        usage=Overwrite(Usage()),  # type: ignore[typeddict-item]
        errors=Overwrite([]),  # type: ignore[typeddict-item]
        notes=Overwrite([]),  # type: ignore[typeddict-item]
        draft="",
    )
