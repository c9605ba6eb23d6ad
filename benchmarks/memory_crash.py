"""Processes that write to one memory store and are killed: is everything acknowledged still stored and searchable?

    python benchmarks/memory_crash.py --writers 8 --records 10000 --kills 24 --out /tmp/memory-crash

Each writer puts records of its own in batches of 1 to 50, overwrites and deletes some of them, and records in a journal
what was acknowledged, once the put has returned. Its operations and their order follow from the seed, so that every
process knows what the store must contain. The parent kills writers with SIGKILL at random moments, some of them while
they merge the index, checks what the dead writer left, and restarts it where its journal ends. Meanwhile a reader
searches: it must find what was acknowledged before its query, at that record's own vector, and every result must be
consistent. At the end everything is compared. Printed as JSON; the exit code is 1 if anything was lost or wrong.

A record is lost if it was acknowledged and is missing or has an earlier value. Wrong is everything else: half a batch,
a deleted record that came back, a score that does not match the value, a search that misses a record by its own vector.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from langgraph.store.base import GetOp, Item, PutOp, SearchItem
from memory_stores import Numbered

from gems.memory.care import verify
from gems.memory.store import FaissStore

_ROOT: Final = "crash"
_DIMS: Final = 64
_BATCH: Final = 50
_OVERWRITES: Final = 0.15
_DELETES: Final = 0.07
_LOOK_BACK: Final = 300
"""Number of latest operations that are checked after their writer died, and that the reader searches for."""
_KILLS_PER_MERGE_KILL: Final = 3
"""One kill in three hits a process that is merging the index, if there is one."""
_TOLERANCE: Final = 1e-4


class Operation(NamedTuple):
    """A put, or a deletion if it is not ``alive``. A writer numbers its operations from 1."""

    number: int
    key: str
    alive: bool


LastOperations = Mapping[str, Operation]
"""The last operation on each key."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The settings of a trial, and its files."""

    out: Path
    writers: int
    records: int
    seed: int

    @property
    def folder(self) -> Path:
        """The folder of the store."""
        return self.out / "store"

    def open(self) -> FaissStore:
        """Open the store."""
        return FaissStore(self.folder, embedder=Numbered(_DIMS))

    def journal(self, writer: int) -> Path:
        """The file where a writer records the number of the last operation acknowledged."""
        return self.out / f"journal-{writer}"

    def merges(self, writer: int) -> Path:
        """A file that exists while a writer merges the index."""
        return self.out / f"merges-{writer}"

    def acknowledged(self, writer: int) -> int:
        """The number of the last operation acknowledged to a writer; 0 if there is none."""
        with suppress(OSError):
            whole = self.journal(writer).read_bytes().rpartition(b"\n")[0]
            return int(whole.rpartition(b"\n")[2] or 0)
        return 0

    def arguments(self) -> list[str]:
        """The command-line arguments for a process of this trial."""
        return [f"--{name}={getattr(self, name)}" for name in ("out", "writers", "records", "seed")]


def plan(trial: Trial, writer: int) -> list[list[Operation]]:
    """All batches of a writer."""
    dice = random.Random(f"{trial.seed} {writer}")
    batches: list[list[Operation]] = []
    number = created = 0
    while created < trial.records:
        batch = []
        for _ in range(dice.randint(1, _BATCH)):
            number += 1
            roll = dice.random() if created else 1.0
            if roll > _OVERWRITES + _DELETES and created < trial.records:
                created += 1
                batch.append(Operation(number, str(created), alive=True))
            else:
                batch.append(Operation(number, str(dice.randint(1, max(created, 1))), alive=roll > _DELETES))
        batches.append(batch)
    return batches


def after(operations: Sequence[Operation]) -> dict[str, Operation]:
    """The last operation on each key."""
    return {operation.key: operation for operation in operations}


def text_of(writer: int, operation: Operation) -> str:
    """The text whose vector the operation stores."""
    return f"{writer}:{operation.number}"


# --- a writer -------------------------------------------------------------------------------------------------------


def write(trial: Trial, writer: int) -> None:
    """Put the batches that are not in the journal yet."""
    acknowledged = trial.acknowledged(writer)
    with closing(trial.open()) as store, trial.journal(writer).open("ab", buffering=0) as journal:
        for batch in plan(trial, writer):
            if batch[-1].number <= acknowledged:
                continue
            store.batch([_put(writer, operation) for operation in batch])
            journal.write(b"%d\n" % batch[-1].number)
            _mark_merges(store, trial.merges(writer))
    trial.merges(writer).unlink(missing_ok=True)


def _put(writer: int, operation: Operation) -> PutOp:
    value = {"t": text_of(writer, operation)} if operation.alive else None
    return PutOp((_ROOT, str(writer)), operation.key, value, ["t"])


def _mark_merges(store: FaissStore, sign: Path) -> None:
    if store._index.is_saving:
        sign.touch()
    else:
        sign.unlink(missing_ok=True)


# --- the reader -----------------------------------------------------------------------------------------------------


class Reader:
    """Searches for records that were acknowledged or deleted, and checks every result."""

    def __init__(self, trial: Trial, store: FaissStore) -> None:
        self.trial, self.store = trial, store
        self.embedder = Numbered(_DIMS)
        self.dice = random.Random(trial.seed + 1)
        self.plans = [[o for batch in plan(trial, writer) for o in batch] for writer in range(trial.writers)]
        self.numbers: list[dict[str, list[int]]] = [{} for _ in self.plans]
        for numbers, operations in zip(self.numbers, self.plans, strict=True):
            for operation in operations:
                numbers.setdefault(operation.key, []).append(operation.number)
        self.wrong: list[str] = []

    def ask(self) -> bool:
        """Make one search. Return False if nothing has been acknowledged yet."""
        writer = self.dice.randrange(self.trial.writers)
        acknowledged = self.trial.acknowledged(writer)
        if not acknowledged:
            return False
        operation = self.plans[writer][self.dice.randint(max(1, acknowledged - _LOOK_BACK), acknowledged) - 1]
        last = self._last(writer, operation.key, acknowledged)
        prefix = self.dice.choice([(_ROOT,), (_ROOT, str(writer))])
        # A deleted record is searched for by a vector that it may have had, and must not be found.
        results = self.store.search(prefix, query=text_of(writer, last if last.alive else operation), limit=5)
        self.wrong += self.mistakes(text_of(writer, last if last.alive else operation), results)
        matches = [item for item in results if (item.namespace, item.key) == ((_ROOT, str(writer)), last.key)]
        if any(_number(item) < last.number for item in matches):
            self.wrong.append(f"{writer}/{last.key}: found as it was before {last.number}")
        elif last.alive and not (matches and matches[0] is results[0] and (matches[0].score or 0) > 1 - _TOLERANCE):
            current = self.store.get((_ROOT, str(writer)), last.key)
            if current is not None and _number(current) == last.number:  # else it has changed since
                self.wrong.append(f"{writer}/{last.key}: stored, but not found by its own vector")
        return True

    def mistakes(self, text: str, results: Sequence[SearchItem]) -> list[str]:
        """What is inconsistent in the results of a search for ``text``."""
        query, wrong = self.embedder.vector(text), []
        for item in results:
            operation = self.plans[int(item.namespace[1])][_number(item) - 1]
            if not operation.alive or item.key != operation.key or item.value["t"].split(":")[0] != item.namespace[1]:
                wrong.append(f"{item.namespace}/{item.key}: holds {item.value}")
            score = float(self.embedder.vector(item.value["t"]) @ query)
            if item.score is None or abs(item.score - score) > _TOLERANCE:
                wrong.append(f"{item.namespace}/{item.key}: {item.score}, and its value's score is {score}")
        scores = [item.score or 0 for item in results]
        return wrong + (["not the nearest first"] if scores != sorted(scores, reverse=True) else [])

    def _last(self, writer: int, key: str, acknowledged: int) -> Operation:
        numbers = self.numbers[writer][key]
        return self.plans[writer][numbers[bisect.bisect_right(numbers, acknowledged) - 1] - 1]


def _number(item: Item) -> int:
    return _number_of_text(item.value["t"])


def _number_of_text(text: str) -> int:
    return int(text.split(":")[1])


def read(trial: Trial) -> None:
    """Search until the file ``stop`` exists, then print what was wrong."""
    with closing(trial.open()) as store:
        reader, searches = Reader(trial, store), 0
        while not (trial.out / "stop").exists():
            if reader.ask():
                searches += 1
            else:
                time.sleep(0.05)
    print(json.dumps({"searches": searches, "wrong": reader.wrong}))


# --- the parent -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Findings:
    """The outcome of a trial."""

    lost_records: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Processes that failed on their own, and failed integrity checks."""
    kills: int = 0
    kills_in_merges: int = 0
    restarts: int = 0

    def compare(self, writer: int, expected: LastOperations, texts: Mapping[str, str | None]) -> None:
        """Record where the texts in a store differ from the expected ones."""
        for key, operation in expected.items():
            text = texts.get(key)
            if operation.alive and (text is None or _number_of_text(text) < operation.number):
                self.lost_records.append(f"{writer}/{key}: {text} in place of {operation}")
            elif text != (text_of(writer, operation) if operation.alive else None):
                self.wrong.append(f"{writer}/{key}: {text}, and {operation} was the last")


class Parent:
    """Starts, kills and restarts writers."""

    def __init__(self, trial: Trial, kills: int) -> None:
        self.trial, self.kills = trial, kills
        self.dice = random.Random(trial.seed)
        self.moments = sorted(self.dice.uniform(0.01, 0.95) for _ in range(kills))
        self.plans = [plan(trial, writer) for writer in range(trial.writers)]
        self.total = sum(batches[-1][-1].number for batches in self.plans)
        self.findings = Findings()
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def run(self) -> None:
        """Run until every writer is done."""
        with closing(self.trial.open()) as store:
            for writer in range(self.trial.writers):
                self._start(writer)
            while self.processes:
                time.sleep(0.02)
                self._reap()
                self._kill_if_due(store)

    def _start(self, writer: int) -> None:
        self.processes[writer] = _process("write", self.trial, writer)

    def _reap(self) -> None:
        for writer, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            del self.processes[writer]
            if process.returncode:
                self.findings.failures.append(f"writer {writer} ended by itself with {process.returncode}")

    def _kill_if_due(self, store: FaissStore) -> None:
        if not self.processes or self.findings.kills >= self.kills:
            return
        merging = [writer for writer in self.processes if self.trial.merges(writer).exists()]
        progress = sum(self.trial.acknowledged(writer) for writer in range(self.trial.writers)) / self.total
        if merging and self.findings.kills_in_merges < self.kills // _KILLS_PER_MERGE_KILL:
            time.sleep(self.dice.random())
        elif progress < self.moments[self.findings.kills]:
            return
        victim = self.dice.choice(merging or sorted(self.processes))
        process = self.processes[victim]
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:  # it had already ended
            return
        self.findings.kills += 1
        self.findings.kills_in_merges += self.trial.merges(victim).exists()
        self.trial.merges(victim).unlink(missing_ok=True)
        say(f"{progress:.0%} acknowledged; kill {self.findings.kills} of {self.kills}: writer {victim}")
        self._look_at(victim, store)
        self.findings.restarts += 1
        self._start(victim)

    def _look_at(self, writer: int, store: FaissStore) -> None:
        """Check what a killed writer left: everything acknowledged, and its last batch either whole or not at all."""
        acknowledged = self.trial.acknowledged(writer)
        operations = [o for batch in self.plans[writer] for o in batch]
        open_batch = next((batch for batch in self.plans[writer] if batch[0].number == acknowledged + 1), [])
        before = after(operations[:acknowledged])
        recent = {o.key for o in [*operations[max(0, acknowledged - _LOOK_BACK) : acknowledged], *open_batch]}
        texts = _values(store, writer, sorted(recent))
        candidates = []
        for expected in (before, before | after(open_batch)):
            findings = Findings()
            findings.compare(writer, {key: expected[key] for key in recent if key in expected}, texts)
            # A key from no acknowledged batch may only exist together with the rest of the open batch.
            findings.wrong += [f"{writer}/{key}: half a batch" for key in recent if key not in expected and texts[key]]
            candidates.append(findings)
        best = min(candidates, key=lambda findings: len(findings.lost_records) + len(findings.wrong))
        self.findings.lost_records += best.lost_records
        self.findings.wrong += best.wrong


def _process(role: str, trial: Trial, *arguments: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, role, *map(str, arguments), *trial.arguments()]
    # Nine processes with a thread per core each would only slow each other down.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)  # noqa: S603


def _values(store: FaissStore, writer: int, keys: Sequence[str]) -> dict[str, str | None]:
    items = store.batch([GetOp((_ROOT, str(writer)), key) for key in keys])
    return {key: item.value["t"] if isinstance(item, Item) else None for key, item in zip(keys, items, strict=True)}


def look_at_all(trial: Trial, parent: Parent, samples: int) -> int:
    """Compare everything with the plans and search for samples. Return the number of records."""
    count, alive = 0, []
    with closing(trial.open()) as store:
        reader = Reader(trial, store)
        for writer, batches in enumerate(parent.plans):
            expected = after([operation for batch in batches for operation in batch])
            items = store.search((_ROOT, str(writer)), limit=2 * len(expected))
            texts = {item.key: item.value["t"] for item in items}
            parent.findings.compare(writer, expected, texts)
            parent.findings.wrong += [f"{writer}/{key}: was never written" for key in texts.keys() - expected.keys()]
            count += len(texts)
            alive += [(writer, operation) for operation in expected.values() if operation.alive]
        say(f"{count} records; searching for {min(samples, len(alive))} of them")
        for writer, operation in parent.dice.sample(alive, min(samples, len(alive))):
            text = text_of(writer, operation)
            results = store.search((_ROOT,), query=text, limit=5)
            parent.findings.wrong += reader.mistakes(text, results)
            nearest = results[0] if results else None
            if nearest is None or (nearest.value["t"], round(nearest.score or 0, 4)) != (text, 1):
                parent.findings.wrong.append(f"{writer}/{operation.key}: not found first by its own vector")
    return count


def crash(trial: Trial, kills: int, samples: int) -> dict[str, Any]:
    """Run the whole trial."""
    start = time.monotonic()
    parent = Parent(trial, kills)
    reader = _process("read", trial)
    try:
        parent.run()
    finally:
        (trial.out / "stop").touch()
        for process in parent.processes.values():  # none, unless the trial was interrupted
            process.kill()
    output, _ = reader.communicate(timeout=300)
    reading: dict[str, Any] = json.loads(output) if reader.returncode == 0 else {"searches": 0, "wrong": []}
    if reader.returncode:
        parent.findings.failures.append(f"the reader ended by itself with {reader.returncode}")
    parent.findings.wrong += reading["wrong"]
    record_count = look_at_all(trial, parent, samples)
    health = {name: right for name, right, _ in verify(trial.folder)}
    # The records are not runs of GEMS; the other checks apply to any store.
    parent.findings.failures += [f"{name} is not whole" for name, right in health.items() if not right]
    return {
        "acknowledged": sum(trial.acknowledged(writer) for writer in range(trial.writers)),
        "records": record_count,
        "lost": len(parent.findings.lost_records),
        "wrong": len(parent.findings.wrong),
        "kills": parent.findings.kills,
        "kills_in_merges": parent.findings.kills_in_merges,
        "restarts": parent.findings.restarts,
        "searches_meanwhile": reading["searches"],
        "samples": samples,
        "whole": health,
        "failures": parent.findings.failures,
        "such_as": (parent.findings.lost_records + parent.findings.wrong)[:10],
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    """Run the trial, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--records", type=int, default=10_000, help="records of each writer")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--samples", type=int, default=2000, help="records to search for at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="an empty or missing folder; removed if nothing failed")
    args = parser.parse_args()
    trial = Trial(args.out, args.writers, args.records, args.seed)
    match args.role:
        case ["write", writer]:
            write(trial, int(writer))
        case ["read"]:
            read(trial)
        case []:
            if args.out.exists() and any(args.out.iterdir()):
                parser.error(f"{args.out} is not empty")
            args.out.mkdir(parents=True, exist_ok=True)
            report = crash(trial, args.kills, args.samples)
            print(json.dumps(report, indent=1))
            if report["lost"] or report["wrong"] or report["failures"]:
                sys.exit(1)
            shutil.rmtree(args.out)
        case _:
            parser.error(f"unknown role {' '.join(args.role)}")


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
