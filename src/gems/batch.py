"""Many prompts through one graph: concurrent, resumable, and no failure of one stops the others."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore

from gems.evidence import ModelRecord, make_folder, run_record, write_evidence
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import MAX_SEED, GemsContext
from gems.graph.errors import GemsError, InputError
from gems.graph.state import Attempt, GemsState, best_attempt
from gems.memory.files import write_atomically
from gems.memory.images import ImageStore
from gems.memory.opening import database_of
from gems.nodes.retry import is_backend_failure
from gems.session import model_records, open_checkpoints, run_thread
from gems.skills.loader import load_skills

__all__ = ["Job", "brief", "claim", "derive_seed", "read_jobs", "run_batch", "run_jobs"]

_MAX_LINE: Final = 64 * 1024
_PLACES: Final = ("memory_url", "images_url")
"""Settings that make no other batch: a database or a bucket can move."""


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt of a batch."""

    index: int
    prompt: str
    seed: int
    id: Any = None
    """The user's own name for it, handed through to the results."""
    line: int = 0
    """Where it stands in the file, from 1."""

    @property
    def key(self) -> str:
        """Identifies its result: what is drawn follows from prompt and seed."""
        return hashlib.sha256(json.dumps([self.prompt, self.seed]).encode()).hexdigest()[:12]

    def row(self) -> dict[str, Any]:
        """The beginning of its result."""
        return {"index": self.index, "line": self.line, "id": self.id, "prompt": self.prompt, "seed": self.seed}


def read_jobs(path: Path, seed: int) -> list[Job]:
    """The prompts of a .txt file (one a line, # for comments) or a .jsonl file (objects with "prompt").

    Each prompt has a seed of its own, drawn from ``seed`` and its index; a "seed" in the object wins.

    Raises:
        InputError: The file cannot be read, or a line is not what it should be.
    """
    try:
        # Not splitlines: JSON text may hold a line separator such as U+2028 as it is.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from error
    if path.suffix.lower() not in ("", ".txt", ".jsonl", ".ndjson"):
        raise InputError(f'{path} is neither .txt (a prompt a line) nor .jsonl (objects with a "prompt")')
    parse = _parse_json if path.suffix.lower() in (".jsonl", ".ndjson") else _parse_text
    jobs: list[Job] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or len(line) > _MAX_LINE:
            if len(line) > _MAX_LINE:
                raise InputError(f"{path}, line {number}: longer than {_MAX_LINE:,} characters")
            continue
        row = parse(line, f"{path}, line {number}")
        if row is not None:
            own = row.get("seed")
            index = len(jobs)
            jobs.append(
                Job(index, row["prompt"], derive_seed(seed, index) if own is None else own, row.get("id"), number)
            )
    if not jobs:
        raise InputError(f"{path} holds no prompt")
    return jobs


def _parse_text(line: str, where: str) -> dict[str, Any] | None:
    return None if line.lstrip().startswith("#") else {"prompt": line.strip()}


def _parse_json(line: str, where: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair could not be written down again
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not usable JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f'{where}: not an object with a text "prompt"')
    seed = row.get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed <= MAX_SEED):
        raise InputError(f'{where}: "seed" is not a whole number from 0 to {MAX_SEED}')
    return row


def derive_seed(seed: int, index: int) -> int:
    """Far apart for neighbours, so that no two prompts of a batch share the seeds of their later rounds."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:4], "big") & MAX_SEED


class _Results:
    """``results.jsonl``: one line per finished prompt, on disk before it counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.rows: dict[int, dict[str, Any]] = {}
        written = path.read_bytes() if path.exists() else b""
        for line in written.split(b"\n"):
            try:
                row = json.loads(line.decode())
                self.rows[row["index"]] = row
            except (ValueError, TypeError, KeyError):
                continue  # the torn last line of a killed batch: that prompt is run again
        if not written.endswith(b"\n") and written:
            os.truncate(path, written.rfind(b"\n") + 1)  # or the file would be no JSON lines for other readers

    def add(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self.rows[row["index"]] = row


def run_batch(
    jobs: list[Job],
    out: Path,
    context: GemsContext,
    *,
    concurrency: int,
    evidence: bool,
    control: RunControl,
    on_start: Callable[[list[dict[str, Any]]], None],
    on_done: Callable[[dict[str, Any]], None],
    store: BaseStore | None = None,
    images: ImageStore | None = None,
) -> list[dict[str, Any]]:
    """Run every job that has no result yet through the graph. Returns all results of the folder, in the file's order.

    Args:
        jobs: What to run.
        out: Holds this batch, and nothing else.
        context: Settings of every run; the seed is each job's own.
        concurrency: Prompts in flight.
        evidence: Whether to write a folder with report.html for each prompt too.
        control: Asks for a stop.
        on_start: Called with the results that were there before.
        on_done: Called with each new result.
        store: The memory, where it is not to be the user's.
        images: Where images go, where that is not ``out/images``.

    Raises:
        InputError: The folder holds another batch or cannot be written to, or a setting cannot be used.
        BackendError: The disk is full, or weights are not there.
    """
    make_folder(out)
    # What would fail every prompt fails here, before it is written down as each prompt's own failure.
    models = model_records(context)
    load_skills(context.skills_dir, builtin=context.builtin_skills)
    batch = claim(out, context, models)
    kept = images or ImageStore(context.images_url or os.environ.get("GEMS_IMAGES") or out / "images")
    with open_checkpoints(out / "checkpoints.sqlite", None if store else database_of(context)) as saver:
        graph = build_graph(checkpointer=saver, images=kept, store=store)

        def work(job: Job) -> dict[str, Any] | None:
            return _run(graph, f"{batch}-{job.key}", job, context, models, control, kept, out if evidence else None)

        def forget(job: Job) -> None:
            saver.delete_thread(f"{batch}-{job.key}")

        return run_jobs(
            jobs,
            out,
            work,
            concurrency=concurrency,
            control=control,
            on_start=on_start,
            on_done=on_done,
            on_written=forget,
        )


def run_jobs(
    jobs: list[Job],
    out: Path,
    work: Callable[[Job], dict[str, Any] | None],
    *,
    concurrency: int,
    control: RunControl,
    on_start: Callable[[list[dict[str, Any]]], None],
    on_done: Callable[[dict[str, Any]], None],
    on_written: Callable[[Job], None] = lambda job: None,
) -> list[dict[str, Any]]:
    """Do the work of every job that has no line in ``out/results.jsonl`` yet. Returns all results, in the jobs' order.

    ``work`` returns a job's result, or None where it was stopped. With a concurrency of 1, jobs run in their order.
    ``on_written`` is called once a result is safe on disk. The rest is as for ``run_batch``.
    """
    results = _Results(out / "results.jsonl")
    done = {job.index for job in jobs if _is_result_of(results.rows.get(job.index), job)}
    on_start([results.rows[job.index] for job in jobs if job.index in done])

    def finish(job: Job) -> dict[str, Any] | None:
        if control.drain_requested:
            return None
        try:
            row = work(job)
            if row is not None:
                results.add(row)
                on_written(job)
        except BaseException:
            control.request_drain("the batch's folder cannot be used")  # nor can any other prompt's result be kept
            raise
        return row

    with ThreadPoolExecutor(concurrency) as pool:
        for future in as_completed([pool.submit(finish, job) for job in jobs if job.index not in done]):
            row = future.result()
            if row is not None:
                on_done(row)
    return [results.rows[job.index] for job in jobs if _is_of(results.rows.get(job.index), job)]


def _is_of(row: dict[str, Any] | None, job: Job) -> bool:
    """Whether a row is about this job: the file may have been put right, or have grown, since."""
    return row is not None and (row["prompt"], row["seed"]) == (job.prompt, job.seed)


def _is_result_of(row: dict[str, Any] | None, job: Job) -> bool:
    """A prompt that cannot be drawn stays so; one that met a failing backend deserves another try."""
    return _is_of(row, job) and (row or {}).get("error_kind") != "backend"


def claim(out: Path, context: GemsContext, models: dict[str, ModelRecord]) -> str:
    """Keep a folder for one batch. Returns the batch's name, which follows from its settings and weights.

    Prompts may be put right or added: each result says what it is the result of.

    Raises:
        InputError: The folder holds a batch of other settings or weights.
    """
    manifest: dict[str, Any] = {
        "settings": context.model_dump(mode="json"),
        "models": {role: asdict(model) for role, model in models.items()},
    }
    said = {
        "settings": {k: v for k, v in manifest["settings"].items() if k not in _PLACES},
        "models": manifest["models"],
    }
    name = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    path = out / "batch.json"
    if path.exists():
        try:
            held = json.loads(path.read_bytes())["batch"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); choose another folder with --out") from error
        if held != name:
            raise InputError(f"{out} holds a batch of other settings or models; choose another folder with --out")
    else:
        write_atomically(path, json.dumps({"batch": name, **manifest}, indent=1, ensure_ascii=False).encode())
    return name


def _run(
    graph: GemsGraph,
    thread: str,
    job: Job,
    context: GemsContext,
    models: dict[str, ModelRecord],
    control: RunControl,
    images: ImageStore,
    evidence: Path | None,
) -> dict[str, Any] | None:
    """One prompt's result, or None if the batch is being stopped."""
    started = time.perf_counter()
    row = {**job.row(), "thread": thread}
    own, begun = context.model_copy(update={"seed": job.seed}), datetime.now(UTC)
    try:
        values = run_thread(graph, thread, job.prompt, own, control=control)
    except Exception as error:
        # A folder that cannot be written to is everybody's; any other failure is this prompt's own: it is written
        # down, and the others go on.
        if isinstance(error, (OSError, sqlite3.Error)) and not is_backend_failure(error):
            raise
        text = " ".join(str(error).split())
        kind = "input" if isinstance(error, InputError) else "backend"
        named = text if isinstance(error, GemsError) else f"{type(error).__name__}: {text}"
        return {**row, "error": named, "error_kind": kind}
    if not values.get("outcome"):
        return None
    if evidence is not None:
        record = run_record(values, own, models, thread, begun)
        write_evidence(evidence / "runs" / f"{job.index:05d}", record, images)
    return {**row, **_summary(values), "seconds": round(time.perf_counter() - started, 3)}


def _summary(values: GemsState) -> dict[str, Any]:
    attempts = values["attempts"]
    best = best_attempt(attempts)
    summary: dict[str, Any] = {
        "run_id": values["run_id"],
        "outcome": values["outcome"],
        "score": round(best.score, 4) if best else 0.0,
        "rounds": attempts[-1].round if attempts else 0,
        "requirements": [r.model_dump(mode="json") for r in values.get("requirements") or []],
        "attempts": [brief(attempt) for attempt in attempts],
        "best": attempts.index(best) if best else None,
        "skills": values.get("skills") or [],
        "memories": [memory.key for memory in values.get("memories") or []],
        "usage": values["usage"].model_dump(mode="json"),
        "errors": values["errors"],
    }
    if values["outcome"] == "failed":
        summary |= {"error": "; ".join(values["errors"]), "error_kind": "backend"}
    return summary


def brief(attempt: Attempt) -> dict[str, Any]:
    """An attempt in a result. Verdicts are {requirement id: [answer, confidence]}."""
    return {
        "round": attempt.round,
        "candidate": attempt.candidate,
        "strategy": attempt.strategy,
        "prompt": attempt.prompt,
        "seed": attempt.seed,
        "score": round(attempt.score, 4),
        "passed": sum(v.answer == "yes" for v in attempt.verdicts),
        "total": len(attempt.verdicts),
        "verdicts": {v.requirement_id: [v.answer, v.confidence] for v in attempt.verdicts},
        "image": attempt.image.uri,
        "sha256": attempt.image.sha256,
        "edited_from": attempt.edited_from,
    }
