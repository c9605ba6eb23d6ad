"""Copies of a pipeline's weights, one per device, shared by all generators that load the same."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from queue import LifoQueue
from typing import Any, Final

from gems.models.devices import pick_devices
from gems.models.diffusers.loading import load_pipeline, number_type
from gems.models.diffusers.previews import Previews
from gems.models.diffusers.source import PipelineSource
from gems.options import GeneratorOptions
from gems.shared import shared

__all__ = ["LOADING_OPTIONS", "Replica", "Replicas", "replicas_of"]

LOADING_OPTIONS: Final = frozenset(
    {
        "device",
        "dtype",
        "offload",
        "quantization",
        "vae_tiling",
        "vae_slicing",
        "compile",
        "trust_remote_code",
        "variant",
        "lora",
        "vae",
        "scheduler",
        "config",
    }
)
"""Options that decide what is loaded; generators with the same values share their weights."""

_LOADING_LOCK: Final = threading.RLock()


class Replica:
    """A pipeline's weights on one device, used by one thread at a time."""

    def __init__(self, source: PipelineSource, options: GeneratorOptions, device: str) -> None:
        self._source, self._options, self.device = source, options, device
        self.limit: int | None = None
        """The largest batch that may fit into memory; None as long as every batch has fitted."""

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline that draws from text."""
        dtype = number_type(self._source, self._options, self.device)
        with _LOADING_LOCK:  # loading changes settings of torch and transformers that all threads share
            return load_pipeline(self._source, self._options, self.device, dtype)

    @cached_property
    def editor(self) -> Any:
        """The pipeline that edits images: the same one, or its image-to-image sibling on the same weights."""
        if self._source.editing_class is self._source.pipeline_class:
            return self.pipeline
        from diffusers import AutoPipelineForImage2Image

        editor = AutoPipelineForImage2Image.from_pipe(self.pipeline)
        editor.set_progress_bar_config(disable=True)
        return editor

    @cached_property
    def previews(self) -> Previews:
        """Draws previews from the pipeline's latents."""
        return Previews(self.pipeline)

    def free(self) -> None:
        """Release the memory that a failed call has left behind."""
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Replicas:
    """One replica per device. A second one is loaded only when the first is in use."""

    def __init__(self, source: PipelineSource, options: GeneratorOptions) -> None:
        self.devices = pick_devices(options.device)
        # Last in, first out: a replica that is loaded is used before one that is not.
        self._idle: LifoQueue[Replica] = LifoQueue()
        for device in reversed(self.devices):
            self._idle.put(Replica(source, options, device))

    @contextmanager
    def borrow(self) -> Iterator[Replica]:
        """A replica for the caller alone; waits until one is idle."""
        replica = self._idle.get()
        try:
            yield replica
        finally:
            self._idle.put(replica)


def replicas_of(source: PipelineSource, options: GeneratorOptions) -> Replicas:
    """The replicas of a pipeline loaded with these options, which everyone in this process shares."""
    loading = GeneratorOptions(**{name: getattr(options, name) for name in LOADING_OPTIONS})
    with _LOADING_LOCK:
        return _shared_replicas(source, loading)


@shared
def _shared_replicas(source: PipelineSource, options: GeneratorOptions) -> Replicas:
    return Replicas(source, options)
