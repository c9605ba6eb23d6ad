"""Chat calls of a step that a stop interrupts count, also when another process does the step again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import light_models
from fakes import PaintGenerator, ScriptedChatModel
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.nodes import meter
from gems.runs.checkpoints import open_checkpoints
from gems.runs.interrupted import run_counted, with_interrupted

CONTEXT = GemsContext(max_rounds=1, candidates=1, plan=False, skills=False, memory=False, seed=1)


def test_what_a_stop_interrupts_counts_once(tmp_path: Path) -> None:
    control, calls = RunControl(), list[str]()
    stops = 2

    def answer(form: str, messages: list[Any], n: int) -> Any:
        nonlocal stops
        calls.append(form)
        if form == "Verdicts" and stops:
            stops -= 1
            control.request_drain("test")
            raise GraphDrained("stopped while waiting for a server")
        return light_models.make_chat(None).script(form, messages, n)  # type: ignore[arg-type]

    for start in (1, 2, 3):
        with open_checkpoints(tmp_path / "checkpoints.sqlite") as saver:
            chat = ScriptedChatModel(script=answer)
            graph = build_graph(
                generator=PaintGenerator(), mllm=chat, checkpointer=saver, images=ImageStore(tmp_path / "images")
            )
            control = RunControl()
            values = run_counted(graph, "t", "two cats", CONTEXT, control=control)
            assert values["usage"].chat_calls == len(calls), start
            seen = graph.get_state({"configurable": {"thread_id": "t"}}).values
            assert start == 3 or seen["usage"].chat_calls < len(calls)
            assert with_interrupted(graph, "t", seen)["usage"].chat_calls == len(calls)
        meter._UNSETTLED.clear()  # another process
    assert values["outcome"] in ("rounds", "solved")
    assert calls.count("Verdicts") >= 3
    assert values["usage"].images == 1
