"""Decides which requests the service accepts: all runs of a request or none."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from gems.errors import InputError
from gems.serve.keys import Client
from gems.serve.ledger import DayUsage, Ledger, NewRun, Run
from gems.serve.metrics import Metrics
from gems.serve.quotas import reserve
from gems.serve.refusals import ConflictError, RefusedError, SpentError, StoppingError
from gems.serve.settings import AcceptedSettings, RunSettings, ServiceSettings, context_of
from gems.serve.workers import WorkerPool
from gems.wording import check_prompt

__all__ = ["Admission", "Submission"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that a client asks for.

    Attributes:
        prompt: The user's prompt.
        settings: Settings of the request, as ``RunSettings``.
        thread: The client's name for related runs.
    """

    prompt: str
    settings: BaseModel = field(default_factory=RunSettings)
    thread: str = ""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that waits for the decision."""

    client: Client
    submissions: Sequence[Submission]
    idempotency_key: str | None
    hash: str
    decision: Future[list[Run]] = field(default_factory=Future)


@dataclass(frozen=True)
class Admission:
    """Accepts the runs of requests. Requests that come at once share a transaction, so that they share its disk flush.

    Attributes:
        settings: The settings of the service.
        ledger: Keeps the accepted runs.
        workers: Executes them.
        metrics: Counts refusals.
    """

    settings: ServiceSettings
    ledger: Ledger
    workers: WorkerPool
    metrics: Metrics
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _requests: deque[_Request] = field(default_factory=deque)

    def admit(
        self, client: Client, submissions: Sequence[Submission], *, idempotency_key: str | None, request: str
    ) -> list[Run]:
        """Accept all runs of a request; see ``Service.submit_all``."""
        submissions = [replace(entry, prompt=self._checked(entry.prompt)) for entry in submissions]
        own = _Request(client, submissions, idempotency_key, _hash(submissions, request))
        self._requests.append(own)
        with self._lock:  # one thread decides for all that wait; the others find their decisions made
            if not own.decision.done():
                self._decide_all([self._requests.popleft() for _ in range(len(self._requests))])
        return own.decision.result()

    def check(self, client: Client, submissions: Sequence[Submission]) -> None:
        """Check that the runs of a request would be accepted now; see ``Service.submit_all``."""
        self._entries_of(client, [replace(entry, prompt=self._checked(entry.prompt)) for entry in submissions])

    def _decide_all(self, requests: Sequence[_Request]) -> None:
        decisions: list[tuple[_Request, list[Run] | Exception]] = []
        try:
            with self.ledger.file.transaction():
                for request in requests:
                    try:
                        decisions.append((request, self._decide(request)))
                    except (RefusedError, ConflictError) as error:
                        decisions.append((request, error))
        except Exception as error:  # a full disk, for example: nothing was accepted
            decisions = [(request, error) for request in requests]
        for request, decision in decisions:
            if isinstance(decision, Exception):
                request.decision.set_exception(decision)
            else:
                request.decision.set_result(decision)

    def _decide(self, request: _Request) -> list[Run]:
        client, key = request.client, request.idempotency_key
        if key and (earlier := self.ledger.by_key(client.name, key)):
            if earlier[0].request != request.hash:
                raise ConflictError("this Idempotency-Key was used for another request; use a new one")
            return earlier
        entries = self._entries_of(client, request.submissions)
        runs = self.ledger.accept(entries, idempotency_key=key, request=request.hash)
        for run in runs:  # a worker that takes one at once waits for the end of the transaction
            self.workers.add(run.user, run.id)
        return runs

    def _entries_of(self, client: Client, submissions: Sequence[Submission]) -> list[NewRun]:
        try:
            self._check_threads(client, submissions)
            self.workers.check_room(client.name, len(submissions))
            return self._reserve(client, submissions)
        except RefusedError as error:
            self.metrics.count_refusal(error.code)
            raise

    def _checked(self, prompt: str) -> str:
        prompt = check_prompt(prompt)
        if len(prompt) > self.settings.max_prompt:
            raise InputError(
                f"the prompt has {len(prompt):,} characters; the limit here is {self.settings.max_prompt:,}"
            )
        return prompt

    def _check_threads(self, client: Client, submissions: Sequence[Submission]) -> None:
        if self.workers.stopping:
            raise StoppingError
        threads = [entry.thread for entry in submissions if entry.thread]
        for thread in threads:
            if threads.count(thread) > 1:
                raise ConflictError(f"thread {thread} can have one run at a time; this request has several")
            if (latest := self.ledger.latest_of(client.name, thread)) and not latest.has_ended:
                raise ConflictError(f"thread {thread} has a run that has not ended: {latest.id}")

    def _reserve(self, client: Client, submissions: Sequence[Submission]) -> list[NewRun]:
        usage = self.ledger.used_today(client.name)
        try:
            return self._entries(client, submissions, usage)
        except SpentError:
            if len(submissions) == 1:
                raise
            return self._entries(client, submissions, usage, even=True)

    def _entries(
        self, client: Client, submissions: Sequence[Submission], usage: DayUsage, *, even: bool = False
    ) -> list[NewRun]:
        entries = list[NewRun]()
        for position, entry in enumerate(submissions):
            accepted = AcceptedSettings(requested=entry.settings)
            context = context_of(self.settings, client.name, accepted)
            budget, reserved = reserve(context, client, usage, share=len(submissions) - position, even=even)
            accepted = accepted.model_copy(update={"budget": budget, "day": client.daily})
            entries.append(NewRun(client.name, entry.prompt, accepted, reserved, entry.thread))
            sums = {name: usage.reserved[name] + reserved.get(name, 0) for name in usage.reserved}
            usage = DayUsage(usage.settled, sums, usage.unfinished)
        return entries


def _hash(submissions: Sequence[Submission], request: str) -> str:
    """A hash of everything that a request asks for."""
    runs = [
        [entry.prompt, entry.settings.model_dump(mode="json", exclude_none=True), entry.thread] for entry in submissions
    ]
    return hashlib.sha256(json.dumps([runs, request], sort_keys=True).encode()).hexdigest()
