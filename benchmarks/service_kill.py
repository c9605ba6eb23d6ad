"""Kills the service at random moments under load: is every accepted run still finished, and charged once?

    python benchmarks/service_kill.py --kills 50

50 keys send requests to ``gems serve``, the first of them, the greedy one, most of them, all at once. The process is
killed with SIGKILL at random moments and started again each time; clients repeat a request, with its Idempotency-Key,
until it is accepted. Some runs are cancelled, and some that ended are deleted. At the end the last service finishes
what is left, and everything is compared. Printed as JSON; the exit code is 1 if anything is wrong.

Lost: a run that was accepted, was not deleted, and is not there. Undead: one that has not ended although nothing is
left to do. Drawn twice: one with two images for the same round and candidate. Charged wrongly: a key whose spending is
not the sum of what its runs used. Revived: a run that a client cancelled before it began, and that made images.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from service_process import ServiceProcess, write_keys

PROMPTS = ("two red cars", "seven wooden koalas chasing a sparkling giraffe", "four green dogs", "a red dog")
FINAL = ("done", "failed", "cancelled")
RETRY_SECONDS = 0.2


@dataclass
class Journal:
    """What clients know about their runs."""

    accepted: dict[str, str] = field(default_factory=dict)
    """The user of each run."""
    cancelled: set[str] = field(default_factory=set)
    """Runs that were cancelled before they began."""
    deleted: set[str] = field(default_factory=set)
    several_ids: int = 0
    """Requests for which two runs were begun."""


def main() -> None:
    """Kill, compare, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often the service is killed")
    parser.add_argument("--keys", type=int, default=50, help="number of keys, with the greedy one")
    parser.add_argument("--runs", type=int, default=4, help="requests of every key but the greedy one")
    parser.add_argument("--greedy-runs", type=int, default=1000, help="requests of the greedy key")
    parser.add_argument("--seconds", type=float, default=5.0, help="longest time between a start and a kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(args, Path(folder)))
    print(json.dumps(result, indent=1))
    raise SystemExit(any(result["faults"].values()))


async def run(args: Any, folder: Path) -> dict[str, Any]:
    """Put load on the service while it is killed, then compare."""
    chance, journal = random.Random(args.seed), Journal()
    keys = write_keys(folder / "keys.toml", ["greedy", *(f"user-{n}" for n in range(1, args.keys))])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bounds = ("--queue", "10000", "--queue-per-key", "5000", "--max-rounds", "2")
    service = ServiceProcess(folder / "home", port, "--keys", str(folder / "keys.toml"), *bounds)
    timeout, connector = aiohttp.ClientTimeout(total=60), aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clients = [
            asyncio.create_task(client(service.url, name, keys[name], n, chance.random(), session, journal))
            for name in keys
            for n in range(args.greedy_runs if name == "greedy" else args.runs)
        ]
        for _ in range(args.kills):
            service.start()
            await service.wait_until_ready(session)
            print(f"{len(journal.accepted)} runs are accepted", file=sys.stderr)
            await asyncio.sleep(chance.uniform(0.0, args.seconds))
            await asyncio.to_thread(service.end, signal.SIGKILL)
        service.start()
        try:
            await service.wait_until_ready(session)
            await asyncio.gather(*clients)
            await _wait_for_all(service.url, keys, session)
            await _wait_for_deletions(folder / "home" / "serve" / "runs.sqlite")
        finally:
            await asyncio.to_thread(service.end, signal.SIGTERM)
    return compare(args, folder / "home" / "serve", journal)


async def client(
    url: str, name: str, key: str, n: int, chance: float, session: aiohttp.ClientSession, journal: Journal
) -> None:
    """Send one request until it is accepted; then cancel every fifth run, and delete every fifth once it has ended."""
    headers = {"authorization": f"Bearer {key}", "idempotency-key": f"request-{n}"}
    body = {"prompt": PROMPTS[n % len(PROMPTS)], "settings": {"seed": n}}

    async def ask(method: str, path: str, **options: Any) -> tuple[int, Any]:
        while True:
            try:
                async with session.request(method, f"{url}{path}", headers=headers, **options) as answer:
                    if answer.status not in (429, 503):
                        return answer.status, await answer.json(content_type=None) if answer.status != 204 else None
            except (aiohttp.ClientError, TimeoutError):
                pass  # it has been killed
            await asyncio.sleep(RETRY_SECONDS)

    _, view = await ask("POST", "/v1/runs", json=body)
    run = view["id"]
    _, again = await ask("POST", "/v1/runs", json=body)
    journal.several_ids += again["id"] != run
    journal.accepted[run] = name
    if chance < 0.2:
        status, view = await ask("POST", f"/v1/runs/{run}/cancel")
        if status == 200 and not view["started_at"]:
            journal.cancelled.add(run)
    elif chance < 0.4:
        while (await ask("GET", f"/v1/runs/{run}"))[1]["status"] not in FINAL:
            await asyncio.sleep(2)
        await ask("DELETE", f"/v1/runs/{run}")  # 404 if the answer to an earlier try was lost
        journal.deleted.add(run)


async def _wait_for_all(url: str, keys: dict[str, str], session: aiohttp.ClientSession) -> None:
    """Wait until the service has no run left to work on."""
    headers = {"authorization": f"Bearer {keys['greedy']}"}
    while True:
        async with session.get(f"{url}/metrics", headers=headers) as answer:
            lines = (await answer.text()).splitlines()
        if {"gems_runs_at_work 0.0", "gems_runs_queued 0.0"} <= set(lines):
            return
        await asyncio.sleep(0.5)


async def _wait_for_deletions(ledger: Path) -> None:
    """Wait for at most a minute until the deletions that were postponed are completed."""
    with closing(sqlite3.connect(ledger)) as db:
        for _ in range(60):
            if db.execute("SELECT 1 FROM runs WHERE deleted_at IS NOT NULL").fetchone() is None:
                return
            await asyncio.sleep(1)


def compare(args: Any, home: Path, journal: Journal) -> dict[str, Any]:
    """Compare what clients know with what the service has written down."""
    with closing(sqlite3.connect(home / "runs.sqlite")) as db:
        rows = db.execute("SELECT id, user, status, record, images, chat_calls, tokens FROM runs").fetchall()
        spending = db.execute("SELECT user, sum(images), sum(chat_calls), sum(tokens) FROM spending GROUP BY user")
        charged = {user: tuple(amounts) for user, *amounts in spending}
    with closing(sqlite3.connect(home / "checkpoints.sqlite")) as db:
        [(checkpoints,)] = db.execute("SELECT count(*) FROM checkpoints").fetchall()
    runs = {row[0] for row in rows}
    users_of_deleted = {journal.accepted[run] for run in journal.deleted}
    sums: dict[str, Counter[str]] = {}
    drawn_twice = charged_wrongly = revived = 0
    for run, user, _, record, images, chat_calls, tokens in rows:
        sums.setdefault(user, Counter()).update(images=images, chat_calls=chat_calls, tokens=tokens)
        attempts = json.loads(record)["attempts"] if record else []
        drawn_twice += len({(a["round"], a["candidate"]) for a in attempts}) != len(attempts)
        charged_wrongly += images != len(attempts)
        revived += run in journal.cancelled and images > 0
    for user, total in sums.items():  # what deleted runs used is charged too, and no longer listed
        amounts = (total["images"], total["chat_calls"], total["tokens"])
        is_right = charged[user] == amounts or (
            user in users_of_deleted and all(a >= b for a, b in zip(charged[user], amounts, strict=True))
        )
        charged_wrongly += not is_right
    return {
        "kills": args.kills,
        "keys": args.keys,
        "accepted": len(journal.accepted),
        "statuses": dict(Counter(row[2] for row in rows)),
        "deleted": len(journal.deleted),
        "cancelled_before_they_began": len(journal.cancelled),
        "faults": {
            "lost": len(journal.accepted.keys() - journal.deleted - runs),
            "begun_twice": journal.several_ids,
            "unknown": len(runs - journal.accepted.keys()),
            "not_deleted": len(runs & journal.deleted),
            "undead": sum(row[2] not in FINAL for row in rows),
            "failed": sum(row[2] == "failed" for row in rows),
            "drawn_twice": drawn_twice,
            "charged_wrongly": charged_wrongly,
            "revived": revived,
            "checkpoints_left": checkpoints,
        },
    }


if __name__ == "__main__":
    main()
