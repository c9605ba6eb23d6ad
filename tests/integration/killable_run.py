"""Runs the graph on fake models and kills itself with SIGKILL at a chosen moment. Used by test_kill.py.

usage: killable_run.py FOLDER MOMENT       MOMENT: KIND:K (the K-th moment of a kind, from 0), or never

KIND is image or verdicts (during the call), writes (just after a node's result is saved) or checkpoint (just after a
step is saved). Together they cover both sides of every boundary between two nodes.

Every image and every chat call adds a line to FOLDER/spent.log. The last line of stdout is the final image's sha256.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import PaintGenerator, ScriptedChatModel
from langgraph.checkpoint.sqlite import SqliteSaver

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.runs.threads import run_thread

FOLDER, (MOMENT, _, WHICH) = Path(sys.argv[1]), sys.argv[2].partition(":")
CONTEXT = GemsContext(seed=11, max_rounds=3, memory=False)
moment_counts: dict[str, int] = {}


def reach(moment: str) -> None:
    """Die here if this is the chosen moment."""
    count = moment_counts[moment] = moment_counts.get(moment, -1) + 1
    if moment == MOMENT and count == int(WHICH):
        os.kill(os.getpid(), signal.SIGKILL)


def spend(line: str) -> None:
    with (FOLDER / "spent.log").open("a") as log:
        log.write(line + "\n")


def answer(schema: str, messages: list[Any], index: int) -> Any:
    if schema == "Verdicts":
        reach("verdicts")
    text = str(messages[-1].text)
    spend(f"{schema} {zlib.crc32(repr([m.content for m in messages]).encode())}")
    match schema:
        case "Plan":
            read = any(m.type == "tool" for m in messages)
            return {"prompt": "the plan of two things"} if read else [("counting", {})]
        case "Requirements":
            return {"requirements": [{"question": f"Is it {i}?", "kind": "other"} for i in "ab"]}
        case "Verdicts":
            ids = [line.split(":")[0] for line in text.splitlines() if line.startswith("r")]
            return {"verdicts": [{"id": i, "answer": "no", "confidence": 0.8, "reason": ""} for i in ids]}
    tries = text.count(" passed, failed ")
    return {"experience": "e", "strategy": "rewrite", "prompt": f"the plan of two things, better {tries}"}


def paint(request: Any, call: int) -> None:
    reach("image")
    spend(f"image {request.seed} {request.prompt}")


class Saver(SqliteSaver):
    def put(self, *args: Any) -> Any:
        checkpoint_config = super().put(*args)
        reach("checkpoint")
        return checkpoint_config

    def put_writes(self, *args: Any) -> None:
        super().put_writes(*args)
        reach("writes")


def main() -> None:
    connection = sqlite3.connect(FOLDER / "checkpoints.sqlite", check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    graph = build_graph(
        checkpointer=Saver(connection),
        mllm=ScriptedChatModel(script=answer),
        generator=PaintGenerator(fail=paint),
        images=ImageStore(FOLDER / "images"),
    )
    values = run_thread(graph, "t", "two things", CONTEXT)
    print(len(values["attempts"]), values["usage"].chat_calls, values["usage"].images, values["outcome"])
    print(values["image"].sha256)


if __name__ == "__main__":
    main()
