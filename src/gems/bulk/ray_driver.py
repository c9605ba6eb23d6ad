"""Batches on a Ray cluster: worker processes run the same graph, and share their image generators.

- Image generators are actors, see ``ray_generators``.
- Workers are an actor pool of Ray Data, see ``ray_workers``. Each runs the graph for many prompts at a time, on CPUs.
  Ray Data gives them prompts as they finish, and replaces those that die.
- Only the driver writes the record of results. Steps are checkpointed where all workers can reach them: if a worker
  dies, its prompts continue elsewhere, and a prompt that had finished there is not run again.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gems.authority import CODE
from gems.bulk.account import AccountStart
from gems.bulk.batch import (
    Batch,
    FailureStreak,
    Stop,
    Worker,
    account_start,
    images_location,
    open_worker,
    places_of,
    skills_of,
)
from gems.bulk.jobs import Job, job_of
from gems.bulk.limits import Limits
from gems.bulk.ray_generators import NAMESPACE, POLL_SECONDS, REFRESH_SECONDS, GeneratorPool
from gems.bulk.ray_workers import BatchTask, Coordinator, GraphWorker, check_shared_storage
from gems.bulk.results import BatchRow, ResultsFile, Tally, claim, is_final, leased, locked, open_record
from gems.errors import BackendError, GemsError, InputError
from gems.extras import how_to_install
from gems.graph.context import ROLES, GemsContext
from gems.json_text import parse_json, strict_json
from gems.memory.opening import database_of
from gems.models.generators import ImageGenerator, Local
from gems.models.registry import init_image_generator
from gems.runs.folder import make_folder
from gems.runs.record import model_records
from gems.secrets import one_line

__all__ = ["run_on_ray"]

_WORKER_VARIABLES: Final = (
    CODE,
    "DIFFUSERS_VERBOSITY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_TELEMETRY",
    "LANGGRAPH_STRICT_MSGPACK",
    "ORT_DISABLE_TELEMETRY",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_VERBOSITY",
)
"""Environment variables that workers take over from the driver. Keys of models are not among them, because Ray shows
these variables to everybody on the cluster."""
_MAX_PROMPTS_PER_BLOCK: Final = 8
"""The most prompts that a worker runs one after another in one call."""


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
    add_prompts: bool = False,
    on_end: Callable[[Batch], None] = lambda batch: None,
) -> Batch:
    """Run every job that has no result yet on a Ray cluster. Otherwise it is like ``run_batch``.

    Args:
        jobs: The batch's jobs.
        out: A folder for this batch alone. On several machines, only the driver's needs to have it.
        context: The settings of every run. A ``python:`` model has to be importable on every machine.
        address: "local" starts a cluster on this machine for this batch; "auto" is the cluster that this machine
            belongs to; HOST:PORT is another one. If this process is connected to a cluster already, that one is used.
        concurrency: Number of prompts in flight, of all workers together.
        on_start: Called with the results that are there already.
        on_done: Called with each new result.
        workers: The most worker processes. None: half as many as the cluster has CPUs.
        stop: Asks for a stop.
        evidence: Whether to write a folder with report.html for each prompt too.
        limits: Limits for the whole batch.
        sample: Run only these jobs.
        checkpoints: A PostgreSQL database for checkpoints. None: the memory's database, or else a file in ``out``.
        add_prompts: Whether the folder may hold results of other prompts alone.
        on_end: Called at the end, while no other process can begin on the folder.

    Raises:
        InputError: Ray is not installed, or a setting cannot be used on a cluster of several machines.
        BackendError: The cluster cannot be reached, or its generators cannot be started.
    """
    make_folder(out)
    out, stop = out.absolute(), stop or Stop()
    _refuse_local_chat_models(context)
    models, skills = model_records(context, load=False), skills_of(context)
    with locked(out), _cluster(address) as ray:
        checkpoints = checkpoints or database_of(context)
        batch = claim(out, context, models, skills, places_of(context, out, checkpoints))
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        check_shared_storage(hosts, context, checkpoints, evidence=evidence)
        generator = init_image_generator(context.generator, context.generator_options, context.authority)
        worker_opening = open_worker(
            out, context, batch, models, checkpoints=checkpoints, generator=generator, stop=stop, skills=skills
        )
        with leased(out, batch, checkpoints, stop.control.request_drain), worker_opening as local_worker:
            record = open_record(out, jobs, batch, add_prompts=add_prompts)
            start = account_start(out, record, local_worker, limits or Limits(), concurrency)
            on_start(record.tally(jobs))
            unfinished_jobs = [job for job in sample or jobs if not record.is_done(job)]
            streak, limit = FailureStreak(stop, concurrency), None
            if unfinished_jobs:
                coordinator = _start_coordinator(ray, start)
                images, host = images_location(context, out), socket.gethostname()
                task = BatchTask(out, context, batch, host, models, skills, checkpoints, images, evidence, coordinator)
                with _supervised(ray, task, generator, stop):
                    rows = _results(ray, task, unfinished_jobs, concurrency, workers)
                    _record_results(rows, record, streak, local_worker, on_done)
                limit = ray.get(coordinator.limit_reached.remote())
            # The coordinator has written the journal; an account that is opened again says what all starts have spent.
            account = account_start(out, record, local_worker, limits or Limits(), concurrency).open()
        result = Batch(jobs, record, limit, streak.reason, account)
        on_end(result)
        return result


def _refuse_local_chat_models(context: GemsContext) -> None:
    for name in map(context.chat_model, ROLES):
        if name.startswith("transformers:"):
            raise InputError(
                f"each worker would load its own copy of {name}: serve it (with vllm serve, for example), and name it "
                "openai:MODEL with --chat-option base_url=..."
            )


def _start_coordinator(ray: Any, start: AccountStart) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node, where the journal is.
    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class: Any = ray.remote(Coordinator)
    return actor_class.options(num_cpus=0, scheduling_strategy=on_this_node).remote(start)


def _record_results(
    rows: Iterator[BatchRow],
    record: ResultsFile,
    streak: FailureStreak,
    local_worker: Worker,
    on_done: Callable[[BatchRow], None],
) -> None:
    for row in rows:
        job = job_of(row)
        if record.is_done(job):
            continue  # Ray has run the prompt again, because it lost a block of results
        record.add(row)
        streak.add(row)
        if is_final(row):
            local_worker.forget(job)
        on_done(row)


# --- Ray Data --------------------------------------------------------------------------------------------------------


def _results(
    ray: Any, task: BatchTask, jobs: Sequence[Job], concurrency: int, max_workers: int | None
) -> Iterator[BatchRow]:
    """Run the jobs on the cluster. Yields results as they come, in any order."""
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayTaskError

    _configure_ray_data()
    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers, prompts_per_worker = _divide(concurrency, max_workers or max(1, cpus // 2))
    items = [{"job": strict_json(job.fields())} for job in jobs]
    results = ray.data.from_items(items, override_num_blocks=_block_count(len(jobs), concurrency)).map_batches(
        GraphWorker,
        fn_constructor_args=(task,),
        batch_size=None,
        # A worker reserves a small share of a CPU, so that a second batch finds room. The generators divide the work.
        num_cpus=min(1.0, 0.5 * cpus / workers) / 2,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=workers,
            initial_size=workers,
            max_tasks_in_flight_per_actor=prompts_per_worker,
            max_concurrent_calls_per_actor=prompts_per_worker,
            enable_true_multi_threading=True,
        ),
    )
    try:
        for block in results.iter_batches(batch_size=None, prefetch_batches=0):
            for text in block["row"].tolist():
                if text:
                    yield parse_json(text)
    except Exception as error:  # whatever a worker or Ray raised
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, GemsError | OSError):
            raise cause from None
        raise BackendError(f"the Ray cluster failed: {type(error).__name__}: {one_line(error, 500)}") from error


def _configure_ray_data() -> None:
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    settings = DataContext.get_current()
    settings.enable_progress_bars = settings.print_on_execution_start = False
    settings.execution_no_progress_timeout_s = -1  # a prompt of a large model may take long
    settings.execution_options.preserve_order = False
    settings.raise_original_map_exception = True


def _divide(concurrency: int, max_workers: int) -> tuple[int, int]:
    """The number of workers, and of prompts in flight per worker, that make at least ``concurrency`` together."""
    prompts_per_worker = math.ceil(concurrency / min(max_workers, concurrency))
    return math.ceil(concurrency / prompts_per_worker), prompts_per_worker


def _block_count(prompts: int, concurrency: int) -> int:
    """The number of blocks to divide the prompts into: four or more per prompt in flight, if there are that many."""
    prompts_per_block = min(_MAX_PROMPTS_PER_BLOCK, prompts // (4 * concurrency))
    return math.ceil(prompts / max(1, prompts_per_block))


# --- the cluster -----------------------------------------------------------------------------------------------------


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster for the block. Yields the module ``ray``. A connection that exists already is kept."""
    # Without this, Ray warns that it is going to hide GPUs from workers that ask for none. Ours need none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--ray needs a package ({error}): {how_to_install('ray')}") from error
    if address.startswith("ray://"):
        raise InputError("--ray cannot use ray:// addresses: start gems on a machine of the cluster, with --ray auto")
    if ray.is_initialized():
        yield ray
        return
    with _messages_on_stderr(ray):
        _connect(ray, address)
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _messages_on_stderr(ray: Any) -> Iterator[None]:
    """Have Ray tell on standard error that a worker died, for example: standard output is the command's own JSON."""
    module = ray._private.worker  # Ray has no public way
    original = module.print_to_stdstream

    def print_to_stderr(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        original({**data, "is_err": True}, *args, **kwargs)

    module.print_to_stdstream = print_to_stderr
    try:
        yield
    finally:
        module.print_to_stdstream = original


def _connect(ray: Any, address: str) -> None:
    if address not in ("local", "auto"):
        _check_reachable(address)
    # LangGraph and the model libraries read these when they are imported; the command line has set them for this
    # process.
    variables = {name: value for name in _WORKER_VARIABLES if (value := os.environ.get(name))}
    options: dict[str, Any] = {
        "address": address,
        "runtime_env": {"env_vars": variables},
        "job_config": _job_config(ray),
    }
    if address == "local":
        options |= {"include_dashboard": False, "num_gpus": _gpu_count()}
    try:
        with warnings.catch_warnings(), _silent_stderr():
            warnings.simplefilter("ignore")
            ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and others of Ray's own
        raise BackendError(f"cannot work on the Ray cluster {address}: {one_line(error)}") from error


def _job_config(ray: Any) -> Any:
    """The settings of the driver's job, which hand on no folder of Python modules but the driver's own."""
    config = ray.job_config.JobConfig()
    config._py_driver_sys_path = _ImportFolders()  # Ray has no public way
    return config


class _ImportFolders(list[str]):
    """The folders that Ray makes its workers import from before all others.

    Ray adds the current folder, in which a file of somebody else could be named like a module. Of what Ray adds, the
    workers get what this process imports from too.
    """

    def extend(self, folders: Iterable[str]) -> None:
        own_folders = {os.path.abspath(folder) for folder in sys.path}  # noqa: PTH100 - as Ray does
        super().extend(folder for folder in folders if folder in own_folders)


def _check_reachable(address: str) -> None:
    """Check that something listens at an address. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f'--ray {address}: give "local", "auto" or HOST:PORT')
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise BackendError(f"cannot work on the Ray cluster {address}: {error.strerror or error}") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what native code writes to standard error: Ray reports there that its log level was set."""
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


# --- supervision -----------------------------------------------------------------------------------------------------


@contextmanager
def _supervised(ray: Any, task: BatchTask, generator: ImageGenerator, stop: Stop) -> Iterator[None]:
    """Keep the cluster's generators running during the block, and pass stop requests on to the workers.

    Raises:
        BackendError: The generators could not be started, and the batch was stopped.
    """
    supervisor = _Supervisor(ray, task, stop, GeneratorPool(task.context) if isinstance(generator, Local) else None)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        supervisor.finished.set()
        thread.join()
    if supervisor.error is not None:
        raise supervisor.error


class _Supervisor:
    """See ``_supervised``.

    Args:
        ray: The module.
        task: The batch.
        stop: Asks for a stop; asked for one if the generators cannot be started.
        generators: The cluster's generators; None if each worker asks a server.
    """

    def __init__(self, ray: Any, task: BatchTask, stop: Stop, generators: GeneratorPool | None) -> None:
        self.finished = threading.Event()
        self.error: BackendError | None = None
        """Why the generators could not be started."""
        self._ray, self._coordinator, self._stop, self._generators = ray, task.coordinator, stop, generators
        self._refreshed_at = -math.inf
        self._forwarded_request = ""

    def run(self) -> None:
        while not self.finished.wait(POLL_SECONDS):
            self._refresh_generators()
            self._forward_stop()

    def _refresh_generators(self) -> None:
        is_current = time.monotonic() - self._refreshed_at <= REFRESH_SECONDS / 2
        if self._generators is None or self.error is not None or is_current:
            return
        self._refreshed_at = time.monotonic()
        try:
            self._ray.get(self._coordinator.set_generators.remote(self._generators.refresh()))
        except BackendError as error:
            self.error = error
            self._stop.control.request_drain(str(error))

    def _forward_stop(self) -> None:
        request = "drain" if self._stop.control.drain_requested else "finish" if self._stop.is_requested else ""
        if request != self._forwarded_request:
            self._ray.get(self._coordinator.stop.remote(request))
            self._forwarded_request = request
