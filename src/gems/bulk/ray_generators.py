"""The image generators of a Ray cluster: actors that the workers of all batches share, one per GPU.

An actor draws batches across the prompts in flight of all workers, and serves the cluster's batches in turn.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import count, islice
from typing import Any, Final

from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from gems.bulk.batch import open_generator
from gems.errors import BackendError
from gems.graph.context import GemsContext
from gems.models.generators import (
    GeneratedImage,
    ImageRequest,
    StepCallback,
    excess_of,
    guide_of,
    objection_to,
    takes_negative_prompts,
)
from gems.models.registry import init_image_generator
from gems.secrets import one_line

__all__ = ["NAMESPACE", "POLL_SECONDS", "REFRESH_SECONDS", "ClusterGenerator", "GeneratorPool", "GeneratorRouter"]

_LOG: Final = logging.getLogger(__name__)
NAMESPACE: Final = "gems"
"""The Ray namespace in which actors have names."""
POLL_SECONDS: Final = 0.5
"""Seconds between two checks of whether the batch is to stop."""
REFRESH_SECONDS: Final = 5.0
"""Seconds for which a list of generators counts as current."""
_MAX_WAITING_CALLS: Final = 4096
"""The most calls that can wait at one actor. All prompts in flight on the cluster have to fit, or an actor would no
longer see the requests of every batch, and could not serve them in turn."""
_MAX_FAILURES: Final = 4
"""How often in a row actors may fail to start, or die while they draw one request, before it counts as failed."""
_WARN_AFTER_SECONDS: Final = 60.0
"""Seconds without any generator before a warning is logged."""


class _GeneratorActor:
    """An image generator in a process of its own, for the requests of many callers."""

    def __init__(self, context: GemsContext) -> None:
        self._stack = ExitStack()
        self._generator: Any = self._stack.enter_context(open_generator(context))

    def load(self) -> bool:
        """Load the weights. Returns True once they are loaded."""
        self._generator.load()
        return True

    def ping(self) -> bool:
        """Answer at once, even while images are drawn."""
        return True

    def generate(self, requests: Sequence[ImageRequest], tenant: str) -> list[GeneratedImage | BackendError]:
        """See ``BatchingGenerator.generate``."""
        results: list[GeneratedImage | BackendError] = self._generator.generate(requests, tenant=tenant)
        return results


# --- for the driver --------------------------------------------------------------------------------------------------


class GeneratorPool:
    """Keeps one generator actor running per GPU, or a single actor on a cluster without GPUs.

    Actors are named after their settings, so that the drivers of all batches with the same settings share them. An
    actor ends with the driver that started it; another driver then starts a new one.
    """

    def __init__(self, context: GemsContext) -> None:
        self._context = context
        # All options, with those that are never written down: another address is another generator.
        settings = [context.generator, *map(str, context.generator_options)]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        self._prefix = f"generator-{digest}"
        self._ready: dict[str, Any] = {}
        """Actors by name."""
        self._starting: dict[Any, tuple[str, Any]] = {}
        """Names and actors, by the reference to the result of ``load``."""
        self._failures, self._last_ready = 0, time.monotonic()

    def refresh(self) -> list[str]:
        """Start actors in place of those that have died. Returns the names of the actors that are ready.

        Raises:
            BackendError: Several actors in a row failed to start.
        """
        self._ready = {name: actor for name, actor in self._ready.items() if _is_alive(actor)}
        self._start_missing()
        self._collect_started()
        self._warn_if_none()
        return list(self._ready)

    def _start_missing(self) -> None:
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        resources = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        names = {*self._ready, *(name for name, _ in self._starting.values())}
        free_names = (name for i in count() if (name := f"{self._prefix}-{i}") not in names)
        actor_class: Any = ray.remote(_GeneratorActor)
        for name in islice(free_names, max(0, max(1, gpus) - len(names))):
            options = {"name": name, "namespace": NAMESPACE, "get_if_exists": True}
            actor = actor_class.options(**options, max_concurrency=_MAX_WAITING_CALLS, **resources).remote(
                self._context
            )
            self._starting[actor.load.remote()] = (name, actor)

    def _collect_started(self) -> None:
        """Move the actors that have loaded their weights to those that are ready."""
        import ray
        from ray.exceptions import RayError

        starting = list(self._starting)
        loaded, _ = ray.wait(starting, num_returns=len(starting), timeout=0) if starting else ([], [])
        for reference in loaded:
            name, actor = self._starting.pop(reference)
            try:
                ray.get(reference)
            except RayError as error:
                self._failures += 1
                if self._failures >= _MAX_FAILURES:
                    raise BackendError(f"cannot start an image generator: {one_line(error)}", retryable=False) from None
            else:
                self._failures, self._ready[name] = 0, actor

    def _warn_if_none(self) -> None:
        now = time.monotonic()
        if self._ready:
            self._last_ready = now
        elif now - self._last_ready > _WARN_AFTER_SECONDS:
            self._last_ready = now
            _LOG.warning("waiting for an image generator: the cluster has no room for one, or it is still loading")


def _is_alive(actor: Any) -> bool:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        ray.get(actor.ping.remote(), timeout=REFRESH_SECONDS)
    except GetTimeoutError:
        return True  # slow, but alive
    except RayError:
        return False
    return True


# --- for the workers -------------------------------------------------------------------------------------------------


class GeneratorRouter:
    """Sends a worker's requests to the least busy of the cluster's generator actors.

    Args:
        list_names: Returns the names of the actors that are ready.
        tenant: The batch that the requests belong to.
        control: Asks for a stop.
    """

    def __init__(self, list_names: Callable[[], list[str]], tenant: str, control: RunControl) -> None:
        self._list_names, self._tenant, self._control = list_names, tenant, control
        self._lock = threading.Lock()
        self._actors: dict[str, Any] = {}
        self._calls: Counter[str] = Counter()
        """This worker's calls in flight, by actor."""
        self._refreshed_at = 0.0

    def generate(self, requests: Sequence[ImageRequest]) -> list[GeneratedImage | BackendError]:
        """Have images drawn by one actor, or by another one if it dies meanwhile.

        Raises:
            BackendError: Several actors in a row have died.
            GraphDrained: The batch is being stopped.
        """
        from ray.exceptions import RayError, RayTaskError

        for _ in range(_MAX_FAILURES):
            name, actor = self._least_busy()
            try:
                return self._wait(actor.generate.remote(requests, self._tenant))
            except RayTaskError as error:
                raise error.cause from None
            except RayError:  # the actor's process or machine is gone, or its result was lost on the way
                with self._lock:
                    self._actors.pop(name, None)
                    self._refreshed_at = 0.0
            finally:
                with self._lock:
                    self._calls[name] -= 1
        raise BackendError(f"{_MAX_FAILURES} image generators died while drawing this prompt", retryable=False)

    def _wait(self, call: Any) -> list[GeneratedImage | BackendError]:
        import ray

        while not self._control.drain_requested:
            if ray.wait([call], timeout=POLL_SECONDS)[0]:
                results: list[GeneratedImage | BackendError] = ray.get(call)
                return results
        raise GraphDrained(self._control.drain_reason or "stopped")

    def _least_busy(self) -> tuple[str, Any]:
        """Choose an actor for a call, once one is ready, and count the call."""
        while not self._control.drain_requested:
            with self._lock:
                if time.monotonic() - self._refreshed_at > REFRESH_SECONDS or not self._actors:
                    self._refresh()
                if self._actors:
                    name = min(self._actors, key=lambda name: self._calls[name])
                    self._calls[name] += 1
                    return name, self._actors[name]
            time.sleep(POLL_SECONDS)
        raise GraphDrained(self._control.drain_reason or "stopped")

    def _refresh(self) -> None:
        import ray

        self._refreshed_at = time.monotonic()
        actors = {}
        for name in self._list_names():
            with suppress(ValueError):  # it has died since
                actors[name] = self._actors.get(name) or ray.get_actor(name, namespace=NAMESPACE)
        self._actors = actors


class ClusterGenerator:
    """A worker's image generator, which has its images drawn by the cluster's actors."""

    def __init__(self, context: GemsContext, router: GeneratorRouter) -> None:
        # It describes the model, and never loads the weights.
        self._description = init_image_generator(context.generator, context.generator_options, context.authority)
        self.name, self.fingerprint = self._description.name, self._description.fingerprint
        self.edits, self.guide = self._description.edits, guide_of(self._description)
        self.takes_negative_prompts = takes_negative_prompts(self._description)
        self._router = router

    def objection(self, prompt: str) -> str:
        """See ``Guided.objection``."""
        return objection_to(self._description, prompt)

    def excess(self, prompt: str) -> str:
        """See ``ReadsSoMuch.excess``."""
        return excess_of(self._description, prompt)

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. Steps are not reported."""
        return self._router.generate(requests)
