"""Draws with every pipeline class of diffusers that can be built tiny, and prints what each did.

    .venv/bin/python benchmarks/pipeline_families.py [CLASS ...]

Each class is built with random weights, loaded by GEMS, and tried: `gems doctor`, `gems generate`, the same seed twice,
another seed, a batch of two prompts against the images drawn alone, a negative prompt, a stop after the second of three
steps, and edits of two images. Differences are those of the pixel that differs most, of 255. All classes take some five
minutes on one core. Classes whose packages are missing are named and left out. The exit code is 1 if a class misses
what it promises.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import diffusers
from family_checks import TOLERANCE, Behaviour, behaviour_of
from tiny_families import TINY_CLASSES

from gems.models.diffusers.families import refusal


def main() -> int:
    """Try the classes that are named on the command line, or else all."""
    warnings.simplefilter("ignore")
    logging.disable()
    print(f"{'class':38}{'size':>11} generate repeated reseeded batched negated stops edited  seconds")
    failures = 0
    for name in sys.argv[1:] or TINY_CLASSES:
        if reason := refusal(getattr(diffusers, name)):
            print(reason, flush=True)
            continue
        start = time.monotonic()
        try:
            with TemporaryDirectory() as folder:
                behaviour = behaviour_of(name, Path(folder))
        except Exception as error:
            failures += 1
            print(f"{name:38} {type(error).__name__}: {error}", flush=True)
            continue
        failures += not behaviour.is_right
        print(f"{name:38}{_row(behaviour)}{time.monotonic() - start:9.1f}", flush=True)
    print(f"{failures} classes miss something; batches may differ by {TOLERANCE} of 255")
    return 1 if failures else 0


def _row(behaviour: Behaviour) -> str:
    width, height = behaviour.size
    batched = "-" if behaviour.batched is None else behaviour.batched
    negated = "-" if behaviour.negated is None else behaviour.negated
    edited = "-" if behaviour.edited is None else behaviour.edited
    return (
        f"{f'{width}x{height}':>11}{'yes' if behaviour.generated else 'NO':>9}{behaviour.repeated:>9}"
        f"{behaviour.reseeded:>9}{batched:>8}{negated:>8}{'yes' if behaviour.cancelled else 'NO':>6}{edited:>7}"
    )


if __name__ == "__main__":
    sys.exit(main())
