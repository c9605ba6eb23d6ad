"""What GEMS does on this machine's GPU, in one run with a time budget: the graph's cost, batches, memory and stops.

    python benchmarks/gpu_check.py --preset gpu --out gpu_check.jsonl     # one GPU with 80 GB, under five minutes
    python benchmarks/gpu_check.py --preset cpu --out gpu_check.jsonl     # the same on small models, without a GPU

The models have the shapes of FLUX.2-klein-4B and Z-Image-Turbo, text encoders included, and random weights: their
images are noise, but they do the work of the trained models. Nothing is downloaded. The chat model is the pocket one.

Each check has a time limit of its own. When it ends, one line of JSON with all that it has measured is written, also if
it has failed; the next check then begins. Checks that no time is left for are skipped, by name. The exit code is 0 if
every check passed or does not apply here, 1 if one failed, and 3 if none failed but time ran out.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import platform
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final
from unittest.mock import patch

import diffusers
import psutil
import torch
import transformers
from gpu_checks import CHECKS, Check, Run, SkippedError
from random_pipelines import SIZES, RandomModel, random_model

from gems.errors import InputError
from gems.models.devices import pick_devices, pick_dtype
from gems.models.local_weights import without_bars
from gems.options import GeneratorOptions

GRACE_SECONDS: Final = 45
"""How long after its budget the process ends itself, if a check cannot be interrupted."""


@dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        device: The device.
        sizes: The shapes of the models, of ``SIZES``.
        side: Pixels on a side of an image.
        budget: Seconds for the whole run.
        limits: The most seconds that a check may take, by name.
        run: The numbers of the checks.
    """

    device: str
    sizes: str
    side: int
    budget: float
    limits: dict[str, float]
    run: Run


PRESETS: Final = {
    "gpu": Preset(
        "cuda:0",
        "full",
        1024,
        265,
        {"build": 40, "overhead": 45, "batches": 50, "memory-runs-out": 30, "in-flight": 45, "cancel": 20},
        Run(
            pairs=3,
            rounds=2,
            batches=(1, 2, 4, 8),
            images=4,
            prompts=8,
            cancels=5,
            few_steps=4,
            stop_steps=20,
            compiles=True,
        ),
    ),
    "cpu": Preset(
        "cpu",
        "small",
        128,
        120,
        {},
        Run(
            pairs=5,
            rounds=2,
            batches=(1, 2, 4, 8),
            images=4,
            prompts=6,
            cancels=3,
            few_steps=3,
            stop_steps=40,
            compiles=False,
        ),
    ),
    "tiny": Preset(
        "cpu",
        "tiny",
        32,
        60,
        {},
        Run(
            pairs=1,
            rounds=1,
            batches=(1, 4),
            images=1,
            prompts=2,
            cancels=1,
            few_steps=2,
            stop_steps=40,
            compiles=False,
        ),
    ),
}
NAMES: Final = tuple(check.name for check in CHECKS)
"""The names of the checks of a model."""
_LIMIT: Final = 60.0
"""Seconds for a check without a limit of its own."""


class CheckTimeoutError(BaseException):
    """A check has used up its time. It is no ``Exception``, so that no model's error handling takes it for its own."""


class Recorder:
    """Writes what each check has measured as soon as it ends, and prints it."""

    def __init__(self, out: Path | None, started: float) -> None:
        self._out, self._started = out, started
        self.counts = {"passed": 0, "failed": 0, "does not apply": 0, "out of time": 0}
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("")

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.time() - self._started

    def write(self, name: str, model: str, status: str, seconds: float, figures: dict[str, Any], reason: str) -> None:
        """Write the end of a check."""
        self.counts[status] += 1
        line = {"check": name, "model": model, "status": status, "seconds": round(seconds, 2)}
        line |= {"elapsed": round(self.elapsed, 1), "figures": figures}
        if reason:
            line["reason"] = reason
        if self._out is not None:
            with self._out.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        print(f"[{self.elapsed:6.1f} s] {model} {name}: {status}, {seconds:.1f} s", flush=True)
        if reason:
            print(f"    {reason}", flush=True)
        for key, value in figures.items():
            print(f"    {key}: {json.dumps(value)}", flush=True)

    @property
    def exit_code(self) -> int:
        """See the module."""
        return 1 if self.counts["failed"] else 3 if self.counts["out of time"] else 0


class Checker:
    """Runs checks one after another, each within its time."""

    def __init__(self, recorder: Recorder, budget: float, limits: dict[str, float]) -> None:
        self._recorder, self._budget, self._limits = recorder, budget, limits

    def run(self, name: str, model: str, action: Callable[[dict[str, Any]], None]) -> bool:
        """Run one check, which fills the dictionary with what it measures. Returns whether it passed.

        Args:
            name: The check's name.
            model: The model that it is about.
            action: Raises ``AssertionError`` or another error if the check fails.
        """
        started, figures, status, reason = time.monotonic(), dict[str, Any](), "passed", ""
        left = self._budget - self._recorder.elapsed
        if left <= 1:
            reason = f"the budget of {self._budget:g} s is used up"
            self._recorder.write(name, model, "out of time", 0, figures, reason)
            return False
        seconds = min(left, self._limits.get(name, _LIMIT))
        try:
            with _time_limit(seconds):
                action(figures)
        except SkippedError as error:
            status, reason = "does not apply", str(error)
        except CheckTimeoutError:
            is_budget = seconds == left
            status = "out of time" if is_budget else "failed"
            reason = f"stopped after {seconds:.0f} s, {'the rest of the budget' if is_budget else 'its time limit'}"
        except Exception as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        self._recorder.write(name, model, status, time.monotonic() - started, figures, reason)
        return status == "passed"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise CheckTimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def machine_facts(device: str) -> dict[str, Any]:
    """The device, and the versions of what runs on it."""
    facts: dict[str, Any] = {"device": device}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts = {"device": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    return {
        **facts,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def _driver() -> str:
    """The NVIDIA driver's version, as its kernel module reports it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and word.count(".") > 1), "unknown")


def check_model(checker: Checker, name: str, preset: Preset, device: str, checks: list[Check], folder: Path) -> None:
    """Make a model and run the checks on it."""
    options = GeneratorOptions(device=device, width=preset.side, height=preset.side)
    with ExitStack() as stack:
        models: list[RandomModel] = []

        def model_of() -> RandomModel:
            if not models:
                raise SkippedError("the model could not be made")
            return models[0]

        def run_check(check: Check, figures: dict[str, Any]) -> None:
            check.run(model_of(), preset.run, figures)

        def build(figures: dict[str, Any]) -> None:
            dtype = pick_dtype(None, device)
            model = stack.enter_context(random_model(name, SIZES[name][preset.sizes], folder, options, dtype))
            models.append(model)
            figures |= {"dtype": str(dtype)[6:], "parameters": model.parameters, "settings": model.generator().settings}

        checker.run("build", name, build)
        for check in checks:
            checker.run(check.name, name, partial(run_check, check))


def main(arguments: list[str] | None = None, started: float | None = None) -> int:
    """Run the checks of a preset.

    Args:
        arguments: The command line; None for this process's own.
        started: When the run began, in seconds since the epoch; None for now.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--out", type=Path, help="file for one line of JSON for each check")
    parser.add_argument("--budget-seconds", type=float, help="checks after it are skipped (default: the preset's)")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument("--checks", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    args = parser.parse_args(arguments)
    preset = PRESETS[args.preset]
    budget = args.budget_seconds or preset.budget
    recorder = Recorder(args.out, started or time.time())
    checker = Checker(recorder, budget, preset.limits)
    try:
        device = pick_devices(preset.device)[0]
    except InputError as error:
        parser.error(str(error))
    checks = [check for check in CHECKS if check.name in args.checks]
    with _quiet(), TemporaryDirectory() as folder, patch.dict(os.environ, GEMS_HOME=str(Path(folder, "home"))):
        faulthandler.dump_traceback_later(max(1.0, budget - recorder.elapsed) + GRACE_SECONDS, exit=True)
        checker.run("machine", "-", lambda figures: figures.update(machine_facts(device)))
        for name in args.models:
            check_model(checker, name, preset, device, checks, Path(folder, name))
        faulthandler.cancel_dump_traceback_later()
    print(f"[{recorder.elapsed:6.1f} s] " + ", ".join(f"{count} {status}" for status, count in recorder.counts.items()))
    return recorder.exit_code


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of libraries, among which the figures would be lost."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), without_bars():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    sys.exit(main(started=psutil.Process().create_time()))
