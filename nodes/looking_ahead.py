"""Verifies the first images of a round while a server draws the others."""

from __future__ import annotations

import threading
from collections.abc import Collection

from langgraph.runtime import Runtime

from gems.faces import in_thread
from gems.graph.context import GemsContext
from gems.graph.state import Assignment, Attempt
from gems.nodes.examiner import Examiner, Inspection, ends_round, inspected, inspection_of, new_checks
from gems.nodes.meter import Meter, chatting
from gems.nodes.resources import Resources
from gems.stopping import is_stopping

__all__ = ["LookAhead"]


class LookAhead:
    """Has images inspected as they arrive: ``verify_concurrency`` at a time, until one ends the round.

    An image that arrives when all are drawn is left to the verifier. So is the rest if an inspection fails, since the
    verifier knows what to do then.

    Attributes:
        notes: Failures of inspectors, one line each.
    """

    def __init__(
        self,
        resources: Resources,
        context: GemsContext,
        assignment: Assignment,
        runtime: Runtime[GemsContext],
        meter: Meter,
    ) -> None:
        self.notes, self._verified = list[str](), dict[str, Attempt]()
        self._resources, self._context, self._runtime, self._meter = resources, context, runtime, meter
        self._requirements = assignment["requirements"]
        self._checks = new_checks(assignment["checks"], self._requirements)
        self._awaited, self._arrived = set[int](), list[Attempt]()
        self._at_work, self._is_over = 0, False
        self._lock = threading.Lock()  # without an event loop, each image is drawn in a thread
        self._examiner: Examiner | None = None

    def await_images(self, candidates: Collection[int]) -> None:
        """Note which images are to be drawn."""
        self._awaited.update(candidates)

    async def arrive(self, candidate: int, attempt: Attempt | None) -> None:
        """Note that an image has arrived, or will not, and inspect images as long as others are awaited."""
        with self._lock:
            self._awaited.discard(candidate)
            self._arrived += [attempt] if attempt is not None else []
        while (subject := self._next()) is not None:
            try:
                with chatting(self._meter, "verifier"):
                    await self._inspect(subject)
            except Exception:
                self._is_over = True
            finally:
                with self._lock:
                    self._at_work -= 1

    def _next(self) -> Attempt | None:
        with self._lock:
            is_free = self._at_work < self._context.verify_concurrency
            is_over = self._is_over or is_stopping()  # a stop waits for what is drawn, and for no look at it
            if is_over or not is_free or not self._awaited or not self._arrived:
                return None
            self._at_work += 1
            return self._arrived.pop(0)

    async def _inspect(self, attempt: Attempt) -> None:
        examiner = await in_thread(self._one_examiner)
        inspections = await examiner.inspections([attempt])
        if not inspections:  # the budget has no room for more
            self._is_over = True
            return
        self._is_over |= ends_round(self._verify(attempt, inspections[0]))

    def _verify(self, attempt: Attempt, inspection: Inspection) -> Attempt:
        verified = inspected(attempt, inspection, len(self._requirements), self._runtime)
        self._verified[attempt.image.sha256] = verified
        return verified

    def verified(self, attempt: Attempt) -> Attempt:
        """The attempt with its verdicts, if it was inspected, now or by an interrupted try of the node."""
        verified, inspection = self._verified.get(attempt.image.sha256), inspection_of(attempt, self._meter)
        if verified is None and inspection is not None:
            return self._verify(attempt, inspection)
        return verified or attempt

    def _one_examiner(self) -> Examiner:
        with self._lock:
            if self._examiner is None:
                requirements = [*self._requirements, *self._checks]
                self._examiner = Examiner(
                    self._resources, self._context, self._meter, requirements, self.notes, makes_do=False
                )
            return self._examiner
