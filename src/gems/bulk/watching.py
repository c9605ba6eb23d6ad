"""How far a batch has come, read from its folder and its checkpoints: nothing is locked or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gems.bulk.faults import faults_of
from gems.bulk.half_done import Killed, read_half_done
from gems.bulk.jobs import Job
from gems.bulk.journal import Journal, PartialRun
from gems.bulk.latest import Latest, read_latest
from gems.bulk.results import ResultsFile, Tally, check_folder, read_manifest, saved_jobs
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Prices, Usage

__all__ = ["Progress", "read_progress"]

_RESULTS_FOR_RATE: Final = 300
"""Latest results that the rate is measured over."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch has come."""

    jobs: list[Job]
    record: ResultsFile
    journal: Journal
    latest: Latest
    half_done: Sequence[Killed]
    """The prompts that have begun and not ended, by their checkpoints."""
    has_checkpoints: bool
    """Whether the checkpoints of the prompts could be read."""
    candidates: int

    @property
    def prices(self) -> Prices:
        """The prices of the last start."""
        return self.latest.prices

    @property
    def tally(self) -> Tally:
        """The prompts that have a result, by outcome."""
        return self.record.tally(self.jobs, retried=True)

    @property
    def usage(self) -> Usage:
        """What all starts have spent, as far as it is on disk."""
        return sum(map(self.record.unrecorded, self._runs.values()), self.record.usage + self.journal.interrupted)

    @property
    def _runs(self) -> dict[str, PartialRun]:
        """What the runs have spent that may have no result, by run id."""
        return {**self.journal.runs, **{prompt.run.run_id: prompt.run for prompt in self.half_done if prompt.run}}

    @property
    def state(self) -> str:
        """What the batch is doing, or why it does nothing."""
        groups, life = self._groups(), self.latest.life
        if life == "running":
            return "running"
        if not (groups["not_begun"] or groups["begun"] or groups["cut_short"] or groups["to_retry"]):
            return "finished"
        if life == "unknown":
            return f"running or killed on {self.latest.host}"
        if self.latest.ended:
            return self.latest.ended
        if self.latest.is_over:
            return "failed; the same command tries again" if groups["to_retry"] else "not finished"
        return "killed, or its folder could not be written to" if self.latest.pid else "not running"

    def figures(self) -> dict[str, Any]:
        """Everything as JSON."""
        tally, groups, latest = self.tally, self._groups(), self.latest
        is_running = latest.life == "running"
        done_count = groups["finished"] + groups["failed"]
        rate = self._rate() if is_running else None
        return {
            "state": self.state,
            "prompts": len(self.jobs),
            "done": done_count,
            **groups,
            "other_results": self.record.stray_count(self.jobs),
            "outcomes": dict(tally.outcomes),
            "errors": faults_of(self.record.rows_with_errors(self.jobs)),
            "solved_rate": round(tally.outcomes["solved"] / tally.done, 4) if tally.done else None,
            "spent": {**self.usage.model_dump(mode="json"), "cost": round(self.prices.cost(self.usage), 4)},
            "checkpoints_read": self.has_checkpoints,
            "in_flight_at_a_kill_at_most": self._lost_images(is_running),
            "limits": latest.limits,
            "prompts_a_minute": rate and round(rate, 1),
            "seconds_left": round(60 * (len(self.jobs) - done_count) / rate) if rate else None,
            "started": latest.started.isoformat() if latest.started else None,
            "host": latest.host or None,
            "pid": latest.pid if is_running else None,
        }

    def _groups(self) -> dict[str, int]:
        """How many prompts are finished, failed for good, to be tried again, cut short, begun, and not begun."""
        begun_keys = {*self.journal.open, *(run.key for run in self._runs.values())}
        groups = Counter(
            self.record.group(job) or ("begun" if job.key in begun_keys else "not_begun") for job in self.jobs
        )
        return {name: groups[name] for name in ("finished", "failed", "to_retry", "cut_short", "begun", "not_begun")}

    def _lost_images(self, is_running: bool) -> int:
        """The most images that were in flight when a process was killed, as the next start counts them."""
        if is_running:
            return self.journal.lost_images
        if not self.has_checkpoints:
            lost_images = [
                self.journal.lost_with(key, self.candidates, Usage()) for key in self.journal.open.elements()
            ]
            return self.journal.lost_images + sum(lost_images)
        return self.journal.lost_images + sum(prompt.lost_images for prompt in self.half_done)

    def _rate(self) -> float | None:
        """Prompts per minute over the latest results of the current start. None: there are too few to say."""
        start = self.latest.started
        moments = [m for m in self.record.latest_moments(_RESULTS_FOR_RATE) if start is None or m >= start]
        seconds = (datetime.now(UTC) - moments[0]).total_seconds() if len(moments) > 1 else 0.0
        return 60 * len(moments) / seconds if seconds > 0 else None


def read_progress(folder: Path, checkpoints: str | None = None) -> Progress:
    """How far the batch in a folder has come.

    Args:
        folder: The batch's folder.
        checkpoints: The PostgreSQL database that holds its checkpoints. None: they are in the folder.

    Raises:
        InputError: The folder holds no batch, or a file in it is damaged; or the database refused the connection.
        BackendError: The database cannot be reached.
    """
    check_folder(folder)
    jobs, manifest = saved_jobs(folder), read_manifest(folder)
    try:
        candidates = GemsContext.model_validate(manifest.get("settings")).images_per_round
    except ValidationError as error:
        raise InputError(f"{folder / 'batch.json'} is damaged ({error.errors()[0]['msg']})") from None
    journal, killed = Journal(folder / "begun.jsonl"), list[Killed]()
    has_checkpoints = not journal.open
    if journal.open:
        with read_half_done(folder, manifest["id"], candidates, checkpoints) as half_done:
            if half_done is not None:
                killed, has_checkpoints = list(half_done.killed(journal)), True
    # The results come last: a prompt that ends meanwhile is among them before it leaves the checkpoints.
    record = ResultsFile(folder / "results.jsonl", bound_to=manifest["bound_to"])
    return Progress(jobs, record, journal, read_latest(folder), killed, has_checkpoints, candidates)
