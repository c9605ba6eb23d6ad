"""Bulk runs on a Ray cluster: the same graph, by worker processes, with generators that are shared by all of them.

- Generators are actors, one a GPU (or one in all, without a GPU). Each makes batches across the prompts in flight of
  all workers, of all batches that run on the cluster, and serves the batches in turn.
- Workers are an actor pool of Ray Data: each runs the graph for many prompts at a time, on CPUs. Ray Data feeds them as
  they finish, starts and replaces them.
- The driver alone writes the record of results. Steps are checkpointed where all workers can reach them, so that a
  prompt whose worker dies goes on elsewhere, and one that had ended there is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Final, Literal

from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from gems.authority import CODE
from gems.bulk.batch import Batch, Despair, Stop, batching, images_place, is_local, open_worker
from gems.bulk.jobs import Job
from gems.bulk.leases import DatabaseLeases, FileLeases, Leases, held
from gems.bulk.limits import Allowance, Limits, spent_in
from gems.bulk.results import BatchRow, ResultsFile, Tally, claim, locked, write_jobs
from gems.database import database_pool
from gems.errors import BackendError, GemsError, InputError
from gems.graph.context import ROLES, GemsContext
from gems.graph.state import Usage
from gems.memory.image_store import ImageStore
from gems.memory.opening import database_of
from gems.models.generators import GeneratedImage, ImageGenerator, ImageRequest, StepCallback, guide_of, objection_to
from gems.models.registry import init_image_generator
from gems.runs.folder import make_folder
from gems.runs.record import ModelRecord, model_records
from gems.secrets import one_line
from gems.skills.loader import load_skills

__all__ = ["check_places", "run_on_ray"]

_LOG: Final = logging.getLogger(__name__)
_NAMESPACE: Final = "gems"
_CALLS: Final = 4096
"""Most calls that wait at one generator: prompts in flight of all workers of all batches, or fairness would end."""
_LOOK: Final = 0.5
"""Seconds between two looks at whether the run is to stop."""
_SEARCH: Final = 5.0
"""Seconds between two looks at which generators there are."""
_WORKERS_ENVIRONMENT: Final = (
    CODE,
    "DIFFUSERS_VERBOSITY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "LANGGRAPH_STRICT_MSGPACK",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_VERBOSITY",
)
"""Variables that workers take over from the driver. Keys of models are not among them: Ray shows what it is given."""
_TRIES: Final = 4
"""How often in a row generators may fail to come up, or die over one request, until it is given up."""
_LONG: Final = 60.0
"""Seconds without any generator until that is said."""
_PROMPTS_A_TASK: Final = 8
"""Most prompts that one task of Ray Data runs, one after another."""


# --- generators ------------------------------------------------------------------------------------------------------


class _GeneratorActor:
    """An image generator in a process of its own, for many callers."""

    def __init__(self, context: GemsContext) -> None:
        self._stack = ExitStack()
        self._generator: Any = self._stack.enter_context(batching(context))

    def ready(self) -> bool:
        """Load the weights; true once they are."""
        self._generator.load()
        return True

    def ping(self) -> bool:
        """Answer at once, however much there is to do."""
        return True

    def generate(self, requests: Sequence[ImageRequest], tenant: str) -> list[GeneratedImage | BackendError]:
        """See ``BatchingGenerator.generate``."""
        results: list[GeneratedImage | BackendError] = self._generator.generate(requests, tenant=tenant)
        return results


class _Keeper:
    """Keeps up the generators of a cluster that draw with the same settings, one a GPU.

    Their names are known to all drivers, so that batches with the same settings share them. One ends with the driver
    that made it; the others' make another.
    """

    def __init__(self, context: GemsContext) -> None:
        self._context = context
        told = json.dumps([context.generator, context.generator_options.model_dump(mode="json")], sort_keys=True)
        self._name = f"generator-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self._ready: dict[str, Any] = {}
        self._starting: dict[Any, tuple[str, Any]] = {}
        self._failures, self._lacking_since = 0, time.monotonic()

    def look(self) -> list[str]:
        """Make what is missing. Gives the names of those that are ready.

        Raises:
            BackendError: None comes up, however often it is tried.
        """
        import ray

        self._ready = {name: actor for name, actor in self._ready.items() if self._is_alive(actor)}
        gpus = int(ray.cluster_resources().get("GPU", 0))
        needs = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        taken = {*self._ready, *(name for name, _ in self._starting.values())}
        free = (name for i in count() if (name := f"{self._name}-{i}") not in taken)
        for name in islice(free, max(0, max(1, gpus) - len(taken))):
            kind: Any = ray.remote(_GeneratorActor)
            options = {"name": name, "namespace": _NAMESPACE, "get_if_exists": True, "max_concurrency": _CALLS}
            actor = kind.options(**options, **needs).remote(self._context)
            self._starting[actor.ready.remote()] = (name, actor)
        self._take_up()
        if self._ready:
            self._lacking_since = time.monotonic()
        elif time.monotonic() - self._lacking_since > _LONG:
            self._lacking_since = time.monotonic()
            _LOG.warning("waiting for a generator: the cluster has no room for one, or it takes long to load")
        return list(self._ready)

    def _take_up(self) -> None:
        """Take those into use that have come up meanwhile."""
        import ray
        from ray.exceptions import RayError

        starting = list(self._starting)
        come, _ = ray.wait(starting, num_returns=len(starting), timeout=0) if starting else ([], [])
        for ref in come:
            name, actor = self._starting.pop(ref)
            try:
                ray.get(ref)
            except RayError as error:
                self._failures += 1
                if self._failures >= _TRIES:
                    raise BackendError(f"no generator comes up: {one_line(error)}", retryable=False) from None
            else:
                self._failures, self._ready[name] = 0, actor

    def _is_alive(self, actor: Any) -> bool:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            ray.get(actor.ping.remote(), timeout=_SEARCH)
        except GetTimeoutError:
            return True  # slow, but there
        except RayError:
            return False
        return True


class _Generators:
    """The generators that are ready, as a worker sees them."""

    def __init__(self, governor: Any, tenant: str, control: RunControl) -> None:
        self._governor, self._tenant, self._control = governor, tenant, control
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._calls: Counter[str] = Counter()
        self._looked = 0.0

    def generate(self, requests: Sequence[ImageRequest]) -> list[GeneratedImage | BackendError]:
        """Have images made by the least busy generator; by another one, if it dies over them."""
        from ray.exceptions import RayError, RayTaskError

        for _ in range(_TRIES):
            name, actor = self._least_busy()
            try:
                return self._wait(actor.generate.remote(requests, self._tenant))
            except RayTaskError as error:
                raise error.cause from None
            except RayError:  # its process or its machine is gone, or what it had made was lost on the way
                with self._lock:
                    self._known.pop(name, None)
                    self._looked = 0.0
            finally:
                with self._lock:
                    self._calls[name] -= 1
        raise BackendError(f"{_TRIES} generators died over it", retryable=False)

    def _wait(self, call: Any) -> list[GeneratedImage | BackendError]:
        import ray

        while not self._control.drain_requested:
            if ray.wait([call], timeout=_LOOK)[0]:
                results: list[GeneratedImage | BackendError] = ray.get(call)
                return results
        raise GraphDrained(self._control.drain_reason or "stopped")

    def _least_busy(self) -> tuple[str, Any]:
        while not self._control.drain_requested:
            with self._lock:
                if time.monotonic() - self._looked > _SEARCH or not self._known:
                    self._look()
                if self._known:
                    name = min(self._known, key=lambda name: self._calls[name])
                    self._calls[name] += 1
                    return name, self._known[name]
            time.sleep(_LOOK)
        raise GraphDrained(self._control.drain_reason or "stopped")

    def _look(self) -> None:
        import ray

        self._looked, found = time.monotonic(), {}
        for name in ray.get(self._governor.generators.remote()):
            with suppress(ValueError):  # it has died since
                found[name] = self._known.get(name) or ray.get_actor(name, namespace=_NAMESPACE)
        self._known = found


class _RayGenerator:
    """The image generator of a worker: the cluster's."""

    def __init__(self, context: GemsContext, generators: _Generators) -> None:
        near = init_image_generator(context.generator, context.generator_options, context.authority)  # loads no weights
        self.name, self.fingerprint, self.edits, self.guide = near.name, near.fingerprint, near.edits, guide_of(near)
        self._near, self._generators = near, generators

    def objection(self, prompt: str) -> str:
        """See ``Guided.objection``."""
        return objection_to(self._near, prompt)

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``; no step is told of."""
        return self._generators.generate(requests)


# --- workers ---------------------------------------------------------------------------------------------------------


class _Governor:
    """An actor of the driver's: says to the workers which prompts may be begun, and whether to stop."""

    def __init__(self, limits: Limits, spent: Usage, dearest: Usage) -> None:
        self._allowance = Allowance(limits, spent, dearest)
        self._stop: Literal["", "finish", "drain"] = ""
        self._generators: list[str] = []

    def begin(self, index: int) -> str:
        """See ``Allowance.begin``."""
        if self._stop and not self._allowance.has_begun(index):
            return "stop"
        return self._allowance.begin(index)

    def done(self, index: int, usage: Usage) -> None:
        """See ``Allowance.done``."""
        self._allowance.done(index, usage)

    def stop(self, how: Literal["finish", "drain"]) -> None:
        """Begin nothing more; with "drain", stop what is in flight too."""
        self._stop = how

    def is_draining(self) -> bool:
        """Whether prompts in flight are to stop at their next step."""
        return self._stop == "drain"

    def reached(self) -> str | None:
        """The limit that ended the run."""
        return self._allowance.reached

    def publish(self, generators: list[str]) -> None:
        """Let the workers know which generators are ready."""
        self._generators = generators

    def generators(self) -> list[str]:
        """The names of the generators that are ready."""
        return self._generators


@dataclass(frozen=True)
class _Task:
    """What a worker is told."""

    out: Path
    context: GemsContext
    batch: str
    host: str
    models: dict[str, ModelRecord]
    checkpoints: str | None
    images: str
    evidence: bool
    governor: Any


class _GraphWorker:
    """What Ray Data's actors run: rows of prompts in, rows of results out, an empty text where there is none."""

    def __init__(self, task: _Task) -> None:
        self._task, self._stack, self._control = task, ExitStack(), RunControl()
        context, control = task.context, self._control
        check_places({socket.gethostname(), task.host}, context, task.checkpoints, evidence=task.evidence)
        # What would fail every prompt here fails before one is tried: a key, a package, weights that are not the same.
        if model_records(context, load=False) != task.models:
            raise InputError(f"the machine {socket.gethostname()} has other weights than {task.host}")
        load_skills(context.skills_dir, builtin=context.builtin_skills)
        generator: ImageGenerator = init_image_generator(
            context.generator, context.generator_options, context.authority
        )
        if is_local(generator):
            generator = _RayGenerator(context, _Generators(task.governor, task.batch, control))
        self._worker = self._stack.enter_context(
            open_worker(
                task.out,
                context,
                task.batch,
                task.models,
                checkpoints=task.checkpoints,
                generator=generator,
                control=control,
                evidence=task.evidence,
                images=ImageStore(task.images),
            )
        )
        self._leases = self._stack.enter_context(_leases(task))
        threading.Thread(target=self._watch, args=(control,), daemon=True).start()

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Run a block's prompts one after another; several blocks run at the same time, in threads."""
        rows = [self._run(Job(**json.loads(text))) for text in block["job"].tolist()]
        return {"row": [json.dumps(row) if row else "" for row in rows]}

    def _run(self, job: Job) -> BatchRow | None:
        import ray

        governor = self._task.governor
        with held(self._leases, self._task.batch, job.index, lambda: self._control.drain_requested) as ours:
            while ours and (word := ray.get(governor.begin.remote(job.index))) == "wait":
                time.sleep(_LOOK)
            if not ours or word == "stop":
                return None
            row = self._worker.run(job)
            ray.get(governor.done.remote(job.index, spent_in(row or {})))
        return row

    def _watch(self, control: RunControl) -> None:
        import ray

        while not control.drain_requested:
            time.sleep(_LOOK)
            if ray.get(self._task.governor.is_draining.remote()):
                control.request_drain("interrupted")


@contextmanager
def _leases(task: _Task) -> Iterator[Leases]:
    database = task.checkpoints or database_of(task.context)
    if database is None:
        yield FileLeases(task.out / ".leases")
        return
    with database_pool(database) as pool:
        yield DatabaseLeases(pool)


# --- the driver ------------------------------------------------------------------------------------------------------


def run_on_ray(
    jobs: list[Job],
    out: Path,
    context: GemsContext,
    *,
    address: str,
    concurrency: int,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
    workers: int | None = None,
    stop: Stop | None = None,
    evidence: bool = False,
    limits: Limits | None = None,
    sample: Sequence[Job] = (),
    checkpoints: str | None = None,
) -> Batch:
    """``run_batch`` on a Ray cluster. What is not said here is as there.

    Args:
        jobs: What to run.
        out: Holds this batch; on several machines, only the driver's has to have it.
        context: Settings of every run. A ``python:`` model has to be importable on every machine.
        address: "local" for a cluster of this machine's, started for this run; "auto" for the one that this machine
            belongs to; HOST:PORT. A program that is connected to one already stays with it.
        concurrency: Prompts in flight, of all workers together.
        on_start: Called with how far it had come before.
        on_done: Called with each new result.
        workers: Most worker processes; None: as many as half the cluster's CPUs.
        stop: Asks for an end.
        evidence: Whether to write a folder with report.html for each prompt too.
        limits: Of the whole run.
        sample: Run these of the jobs only.
        checkpoints: A PostgreSQL database for half-finished runs.

    Raises:
        InputError: Ray is not installed, or a setting does not go with a cluster of several machines.
        BackendError: The cluster cannot be reached.
    """
    make_folder(out)
    out, stop = out.absolute(), stop or Stop()
    if local := [name for role in ROLES if (name := context.chat_model(role)).startswith("transformers:")]:
        raise InputError(
            f"each worker would load {local[0]} for itself: serve it (vllm serve, say), and name it openai:MODEL with "
            "--chat-option base_url=..."
        )
    models = model_records(context, load=False)
    load_skills(context.skills_dir, builtin=context.builtin_skills)
    with locked(out), _connected(address) as ray:
        batch = claim(out, context, models)
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        check_places(hosts, context, checkpoints, evidence=evidence)
        write_jobs(out, jobs)
        record = ResultsFile(out / "results.jsonl", repair=True)
        on_start(record.tally(jobs))
        todo = [job for job in sample or jobs if not record.is_done(job)]
        if not todo:
            return Batch(jobs, record)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        kind: Any = ray.remote(_Governor)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        about = (limits or Limits(), record.usage, record.max_usage)
        governor = kind.options(num_cpus=0, scheduling_strategy=here).remote(*about)
        images = images_place(context, out)
        task = _Task(out, context, batch, socket.gethostname(), models, checkpoints, images, evidence, governor)
        generator = init_image_generator(context.generator, context.generator_options, context.authority)
        despair = Despair(stop, concurrency)
        with (
            open_worker(
                out,
                context,
                batch,
                models,
                checkpoints=checkpoints,
                generator=generator,
                control=stop.control,
                images=ImageStore(images),
            ) as near,
            _tending(ray, task, generator, stop),
        ):
            for row in _results(ray, task, todo, concurrency, workers):
                if record.is_done(job := Job(row["index"], row["prompt"], row["seed"])):
                    continue  # Ray has run it again: what it had handed over was lost on the way here
                record.add(row)
                despair.hear(row)
                near.forget(job)
                on_done(row)
        return Batch(jobs, record, ray.get(governor.reached.remote()), despair.reason)


def _results(ray: Any, task: _Task, todo: Sequence[Job], concurrency: int, workers: int | None) -> Iterator[BatchRow]:
    """Results as they come, in any order."""
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayTaskError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    settings = DataContext.get_current()
    settings.enable_progress_bars = settings.print_on_execution_start = False
    settings.execution_no_progress_timeout_s = -1  # a prompt of a large model can take as long as it likes
    settings.execution_options.preserve_order = False
    settings.raise_original_map_exception = True

    cpus = int(ray.cluster_resources().get("CPU", 1))
    most = workers or max(1, cpus // 2)
    most = min(most, concurrency)
    each = -(-concurrency // most)
    most = -(-concurrency // each)
    size = max(1, min(_PROMPTS_A_TASK, len(todo) // (4 * concurrency)))
    items = [{"job": json.dumps(job.row())} for job in todo]
    results = ray.data.from_items(items, override_num_blocks=-(-len(items) // size)).map_batches(
        _GraphWorker,
        fn_constructor_args=(task,),
        batch_size=None,
        # The share that a worker takes up is small, so that a second batch finds room; generators divide the work.
        num_cpus=min(1.0, 0.5 * cpus / most) / 2,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=most,
            initial_size=most,
            max_tasks_in_flight_per_actor=each,
            max_concurrent_calls_per_actor=each,
            enable_true_multi_threading=True,
        ),
    )
    try:
        for block in results.iter_batches(batch_size=None, prefetch_batches=0):
            for text in block["row"].tolist():
                if text:
                    yield json.loads(text)
    except Exception as error:  # whatever a worker raised, or Ray
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, GemsError | OSError):
            raise cause from None
        raise BackendError(f"the cluster gave up: {type(error).__name__}: {one_line(error, 500)}") from error


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, and disconnected again if it was not connected before."""
    # Ray warns that it will come to leave GPUs visible to workers without one: they ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--ray needs a package: pip install 'gems-graph[ray]' ({error})") from error
    if address.startswith("ray://"):
        raise InputError("ray:// is for small clients: start gems on a machine of the cluster, with --ray auto")
    if ray.is_initialized():
        yield ray
        return
    if address not in ("local", "auto"):
        _knock(address)
    # What the command line sets for this process: LangGraph and the model libraries read it when they are imported.
    theirs = {name: value for name in _WORKERS_ENVIRONMENT if (value := os.environ.get(name))}
    where: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": theirs}}
    if address == "local":
        where |= {"include_dashboard": False, "num_gpus": _gpus_here()}
    try:
        with warnings.catch_warnings(), _hushed():
            warnings.simplefilter("ignore")
            ray.init(namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **where)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and others of its own
        raise BackendError(f"cannot work on the Ray cluster {address}: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See that something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f'--ray {address}: give "local", "auto" or HOST:PORT')
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise BackendError(f"cannot work on the Ray cluster {address}: {error.strerror or error}") from None


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep native code from writing to standard error: Ray tells there how it was told to be quiet."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def check_places(hosts: AbstractSet[str], context: GemsContext, checkpoints: str | None, *, evidence: bool) -> None:
    """On several machines, nothing that workers share may lie in a folder of one of them.

    Raises:
        InputError: Something would.
    """
    if len(hosts) < 2:
        return
    several = f"the cluster has {len(hosts)} machines or more"
    if not (checkpoints or database_of(context)):
        raise InputError(
            f"{several}: --checkpoints postgresql://USER@HOST/DATABASE keeps half-finished prompts for all"
        )
    if context.memory and not database_of(context):
        raise InputError(f"{several}: --memory postgresql://USER@HOST/DATABASE is one memory for all")
    if not (context.images_url or os.environ.get("GEMS_IMAGES")):
        raise InputError(
            f"{several}: --images s3://BUCKET/FOLDER, or a folder that all of them share, keeps the images"
        )
    if evidence:
        raise InputError(f"{several}: --evidence is for one; 'gems export' makes use of the images afterwards")


@contextmanager
def _tending(ray: Any, task: _Task, generator: ImageGenerator, stop: Stop) -> Iterator[None]:
    """Keep the generators up meanwhile, and pass on to the workers what the user asks for.

    Raises:
        BackendError: The generators could not be kept up; the run was stopped for it.
    """
    over, faults = threading.Event(), list[BackendError]()
    keeper = _Keeper(task.context) if is_local(generator) else None

    def tend() -> None:
        told, looked = "", -_SEARCH
        while not over.wait(_LOOK):
            if keeper is not None and not faults and time.monotonic() - looked > _SEARCH / 2:
                looked = time.monotonic()
                try:
                    ray.get(task.governor.publish.remote(keeper.look()))
                except BackendError as error:
                    faults.append(error)
                    stop.control.request_drain(str(error))
            wish = "drain" if stop.control.drain_requested else "finish" if stop.wanted else ""
            if wish != told:
                ray.get(task.governor.stop.remote(wish))
                told = wish

    thread = threading.Thread(target=tend, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if faults:
        raise faults[0]
