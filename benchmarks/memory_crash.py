"""Processes that write to one memory store and are killed: is all there that was acknowledged, and is it found?

    python benchmarks/memory_crash.py --writers 8 --records 10000 --kills 24 --out /tmp/memory-crash

Each writer puts records of its own in batches of 1 to 50, overwrites and deletes some of them again, and notes in a
journal what was acknowledged, once the put has returned. What it does in which order follows from the seed, so that
everybody knows what the store has to hold. The parent kills writers with SIGKILL at random moments, some of them while
they merge the index, looks at what the dead one left, and starts it again where its journal ends. Meanwhile a reader
searches: what was acknowledged before it asked must be found, at its own vector, and whatever is found must be what it
says it is. At the end everything is compared. Printed as JSON; the exit code is 1 if anything was lost or wrong.

Lost is what was acknowledged and is not there, or there as it was before. Wrong is everything else: half a batch, a
record that came back, a score that is not that of the value, a search that does not find a record by its own vector.
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

from gems.memory.care import verify
from gems.memory.store import FaissStore
from memory_stores import Numbered

_ROOT: Final = "crash"
_DIMS: Final = 64
_BATCH: Final = 50
_OVERWRITES: Final = 0.15
_DELETES: Final = 0.07
_LOOK_BACK: Final = 300
"""Operations that are looked at when their writer has died, and that the reader asks for."""
_OF_MERGES: Final = 3
"""Every third kill hits a process that merges the index, if there is one."""
_TOLERANCE: Final = 1e-4


class Operation(NamedTuple):
    """A put or a deletion; numbers rise with each of a writer's operations."""

    number: int
    key: str
    alive: bool


Wanted = Mapping[str, Operation]
"""By key, what was last done to it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is done, and where."""

    out: Path
    writers: int
    records: int
    seed: int

    @property
    def folder(self) -> Path:
        """The store's."""
        return self.out / "store"

    def open(self) -> FaissStore:
        """The store."""
        return FaissStore(self.folder, embedder=Numbered(_DIMS))

    def journal(self, writer: int) -> Path:
        """Where a writer notes the number of the last operation that was acknowledged."""
        return self.out / f"journal-{writer}"

    def merges(self, writer: int) -> Path:
        """There while a writer merges the index."""
        return self.out / f"merges-{writer}"

    def acknowledged(self, writer: int) -> int:
        """That number; 0 if nothing was."""
        with suppress(OSError):
            whole = self.journal(writer).read_bytes().rpartition(b"\n")[0]
            return int(whole.rpartition(b"\n")[2] or 0)
        return 0

    def arguments(self) -> list[str]:
        """For a process of this trial."""
        return [f"--{name}={getattr(self, name)}" for name in ("out", "writers", "records", "seed")]


def plan(trial: Trial, writer: int) -> list[list[Operation]]:
    """The batches of a writer."""
    dice = random.Random(f"{trial.seed} {writer}")
    batches: list[list[Operation]] = []
    number = made = 0
    while made < trial.records:
        batch = []
        for _ in range(dice.randint(1, _BATCH)):
            number += 1
            roll = dice.random() if made else 1.0
            if roll > _OVERWRITES + _DELETES and made < trial.records:
                made += 1
                batch.append(Operation(number, str(made), alive=True))
            else:
                batch.append(Operation(number, str(dice.randint(1, max(made, 1))), alive=roll > _DELETES))
        batches.append(batch)
    return batches


def after(operations: Sequence[Operation]) -> dict[str, Operation]:
    """What was last done to each key."""
    return {operation.key: operation for operation in operations}


def text_of(writer: int, operation: Operation) -> str:
    """The text whose vector is put."""
    return f"{writer}:{operation.number}"


# --- a writer -------------------------------------------------------------------------------------------------------


def write(trial: Trial, writer: int) -> None:
    """Put what the journal does not hold yet."""
    done = trial.acknowledged(writer)
    with closing(trial.open()) as store, trial.journal(writer).open("ab", buffering=0) as journal:
        for batch in plan(trial, writer):
            if batch[-1].number <= done:
                continue
            store.batch([_put(writer, operation) for operation in batch])
            journal.write(b"%d\n" % batch[-1].number)
            _tell_of_merges(store, trial.merges(writer))
    trial.merges(writer).unlink(missing_ok=True)


def _put(writer: int, operation: Operation) -> PutOp:
    value = {"t": text_of(writer, operation)} if operation.alive else None
    return PutOp((_ROOT, str(writer)), operation.key, value, ["t"])


def _tell_of_merges(store: FaissStore, sign: Path) -> None:
    if store._index.is_saving:
        sign.touch()
    else:
        sign.unlink(missing_ok=True)


# --- the reader -----------------------------------------------------------------------------------------------------


class Reader:
    """Searches for what was acknowledged, and for what was deleted, and doubts whatever it finds."""

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
        """One search; False if there is nothing to be found yet."""
        writer = self.dice.randrange(self.trial.writers)
        upto = self.trial.acknowledged(writer)
        if not upto:
            return False
        some = self.plans[writer][self.dice.randint(max(1, upto - _LOOK_BACK), upto) - 1]
        last = self._last(writer, some.key, upto)
        prefix = self.dice.choice([(_ROOT,), (_ROOT, str(writer))])
        # What was deleted is asked for with the vector of what it may have been, and must not be found.
        found = self.store.search(prefix, query=text_of(writer, last if last.alive else some), limit=5)
        self.wrong += self.doubts(text_of(writer, last if last.alive else some), found)
        mine = [item for item in found if (item.namespace, item.key) == ((_ROOT, str(writer)), last.key)]
        if any(_number(item) < last.number for item in mine):
            self.wrong.append(f"{writer}/{last.key}: found as it was before {last.number}")
        elif last.alive and not (mine and mine[0] is found[0] and (mine[0].score or 0) > 1 - _TOLERANCE):
            now = self.store.get((_ROOT, str(writer)), last.key)
            if now is not None and _number(now) == last.number:  # else it was changed meanwhile
                self.wrong.append(f"{writer}/{last.key}: there, and not found by its own vector")
        return True

    def doubts(self, text: str, found: Sequence[SearchItem]) -> list[str]:
        """What is not as it says it is."""
        query, wrong = self.embedder.vector(text), []
        for item in found:
            operation = self.plans[int(item.namespace[1])][_number(item) - 1]
            if not operation.alive or item.key != operation.key or item.value["t"].split(":")[0] != item.namespace[1]:
                wrong.append(f"{item.namespace}/{item.key}: holds {item.value}")
            score = float(self.embedder.vector(item.value["t"]) @ query)
            if item.score is None or abs(item.score - score) > _TOLERANCE:
                wrong.append(f"{item.namespace}/{item.key}: {item.score}, and its value's score is {score}")
        scores = [item.score or 0 for item in found]
        return wrong + (["not the nearest first"] if scores != sorted(scores, reverse=True) else [])

    def _last(self, writer: int, key: str, upto: int) -> Operation:
        numbers = self.numbers[writer][key]
        return self.plans[writer][numbers[bisect.bisect_right(numbers, upto) - 1] - 1]


def _number(item: Item) -> int:
    return _number_in(item.value["t"])


def _number_in(text: str) -> int:
    return int(text.split(":")[1])


def read(trial: Trial) -> None:
    """Search until told to stop, then print what was wrong."""
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
    """What became of it."""

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Processes that ended by themselves, and not well."""
    kills: int = 0
    kills_in_merges: int = 0
    restarts: int = 0

    def compare(self, writer: int, wanted: Wanted, held: Mapping[str, str | None]) -> None:
        """Note where a store does not hold what it must."""
        for key, operation in wanted.items():
            text = held.get(key)
            if operation.alive and (text is None or _number_in(text) < operation.number):
                self.lost.append(f"{writer}/{key}: {text} in place of {operation}")
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
        self.found = Findings()
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def run(self) -> None:
        """Until every writer is done."""
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
                self.found.failures.append(f"writer {writer} ended by itself with {process.returncode}")

    def _kill_if_due(self, store: FaissStore) -> None:
        if not self.processes or self.found.kills >= self.kills:
            return
        merging = [writer for writer in self.processes if self.trial.merges(writer).exists()]
        done = sum(self.trial.acknowledged(writer) for writer in range(self.trial.writers)) / self.total
        if merging and self.found.kills_in_merges < self.kills // _OF_MERGES:
            time.sleep(self.dice.random())
        elif done < self.moments[self.found.kills]:
            return
        victim = self.dice.choice(merging or sorted(self.processes))
        process = self.processes[victim]
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:  # it had ended meanwhile
            return
        self.found.kills += 1
        self.found.kills_in_merges += self.trial.merges(victim).exists()
        self.trial.merges(victim).unlink(missing_ok=True)
        say(f"{done:.0%} acknowledged; kill {self.found.kills} of {self.kills}: writer {victim}")
        self._look_at(victim, store)
        self.found.restarts += 1
        self._start(victim)

    def _look_at(self, writer: int, store: FaissStore) -> None:
        """What the dead one left: all that was acknowledged, and of the batch it was at all or nothing."""
        upto = self.trial.acknowledged(writer)
        operations = [o for batch in self.plans[writer] for o in batch]
        begun = next((batch for batch in self.plans[writer] if batch[0].number == upto + 1), [])
        before = after(operations[:upto])
        recent = {o.key for o in [*operations[max(0, upto - _LOOK_BACK) : upto], *begun]}
        held = _values(store, writer, sorted(recent))
        candidates = []
        for wanted in (before, before | after(begun)):
            nobody = Findings()
            nobody.compare(writer, {key: wanted[key] for key in recent if key in wanted}, held)
            # What was in no acknowledged batch may only be there with the one that was begun.
            nobody.wrong += [f"{writer}/{key}: half a batch" for key in recent if key not in wanted and held[key]]
            candidates.append(nobody)
        best = min(candidates, key=lambda findings: len(findings.lost) + len(findings.wrong))
        self.found.lost += best.lost
        self.found.wrong += best.wrong


def _process(role: str, trial: Trial, *more: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, role, *map(str, more), *trial.arguments()]
    # Nine processes with a thread per core each would only wait for one another.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)  # noqa: S603


def _values(store: FaissStore, writer: int, keys: Sequence[str]) -> dict[str, str | None]:
    items = store.batch([GetOp((_ROOT, str(writer)), key) for key in keys])
    return {key: item.value["t"] if isinstance(item, Item) else None for key, item in zip(keys, items, strict=True)}


def look_at_all(trial: Trial, parent: Parent, samples: int) -> int:
    """Compare everything with the plans, and search for some of it; how many records there are."""
    count, alive = 0, []
    with closing(trial.open()) as store:
        reader = Reader(trial, store)
        for writer, batches in enumerate(parent.plans):
            wanted = after([operation for batch in batches for operation in batch])
            items = store.search((_ROOT, str(writer)), limit=2 * len(wanted))
            held = {item.key: item.value["t"] for item in items}
            parent.found.compare(writer, wanted, held)
            parent.found.wrong += [f"{writer}/{key}: nobody put it" for key in held.keys() - wanted.keys()]
            count += len(held)
            alive += [(writer, operation) for operation in wanted.values() if operation.alive]
        say(f"{count} records; searching for {min(samples, len(alive))} of them")
        for writer, operation in parent.dice.sample(alive, min(samples, len(alive))):
            text = text_of(writer, operation)
            found = store.search((_ROOT,), query=text, limit=5)
            parent.found.wrong += reader.doubts(text, found)
            first = found[0] if found else None
            if first is None or (first.value["t"], round(first.score or 0, 4)) != (text, 1):
                parent.found.wrong.append(f"{writer}/{operation.key}: not found first by its own vector")
    return count


def crash(trial: Trial, kills: int, samples: int) -> dict[str, Any]:
    """All of it."""
    begin = time.monotonic()
    parent = Parent(trial, kills)
    reader = _process("read", trial)
    try:
        parent.run()
    finally:
        (trial.out / "stop").touch()
        for process in parent.processes.values():  # none, unless we were interrupted
            process.kill()
    said, _ = reader.communicate(timeout=300)
    reading: dict[str, Any] = json.loads(said) if reader.returncode == 0 else {"searches": 0, "wrong": []}
    if reader.returncode:
        parent.found.failures.append(f"the reader ended by itself with {reader.returncode}")
    parent.found.wrong += reading["wrong"]
    present = look_at_all(trial, parent, samples)
    health = {name: right for name, right, _ in verify(trial.folder)}
    # Our records are no runs of GEMS; all other checks hold for any store.
    parent.found.failures += [f"{name} is not whole" for name, right in health.items() if not right]
    return {
        "acknowledged": sum(trial.acknowledged(writer) for writer in range(trial.writers)),
        "records": present,
        "lost": len(parent.found.lost),
        "wrong": len(parent.found.wrong),
        "kills": parent.found.kills,
        "kills_in_merges": parent.found.kills_in_merges,
        "restarts": parent.found.restarts,
        "searches_meanwhile": reading["searches"],
        "samples": samples,
        "whole": health,
        "failures": parent.found.failures,
        "such_as": (parent.found.lost + parent.found.wrong)[:10],
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> None:
    """One of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--records", type=int, default=10_000, help="of each writer")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--samples", type=int, default=2000, help="records that are searched for at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="an empty or missing folder; removed if all is well")
    given = parser.parse_args()
    trial = Trial(given.out, given.writers, given.records, given.seed)
    match given.role:
        case ["write", writer]:
            write(trial, int(writer))
        case ["read"]:
            read(trial)
        case []:
            if given.out.exists() and any(given.out.iterdir()):
                parser.error(f"{given.out} is not empty")
            given.out.mkdir(parents=True, exist_ok=True)
            report = crash(trial, given.kills, given.samples)
            print(json.dumps(report, indent=1))
            if report["lost"] or report["wrong"] or report["failures"]:
                sys.exit(1)
            shutil.rmtree(given.out)
        case _:
            parser.error(f"{' '.join(given.role)}: nothing that could be done")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
