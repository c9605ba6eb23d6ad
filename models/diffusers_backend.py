"""Image generation with a diffusers pipeline in this process."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from gems.graph.errors import BackendError, GemsError, InputError
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback
from gems.models.loading import without_bars
from gems.models.pocket.weights import folder_fingerprint

__all__ = ["DiffusersGenerator"]


class DiffusersGenerator:
    """Any text-to-image ``DiffusionPipeline``, loaded at its first use.

    Images are made one by one, each from a generator of its own seed: image k of a batch is the same, to the byte, as
    the same request alone. One pipeline serves all threads, one at a time, since its scheduler holds the steps' state.

    Args:
        source: A local pipeline folder, or a repository id.
        name: What to call this backend in records.
        module: The module that defines the pipeline's class, where that is not diffusers.
    """

    def __init__(self, source: str | Path, *, name: str, module: str = "diffusers") -> None:
        self.edits = module != "diffusers"
        self.source = source
        self.name = name
        self._module = module
        self._lock = threading.Lock()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of a local folder's weights; a repository's id and resolved revision otherwise."""
        folder = Path(self.source)
        if folder.is_dir():
            return folder_fingerprint(folder)
        with self._lock:
            revision = getattr(self._pipeline.config, "_commit_hash", None)
        return f"{self.source}@{revision or 'main'}"

    def load(self) -> None:
        """Load the weights now, rather than at the first image.

        Raises:
            BackendError: They are not there or cannot be loaded.
        """
        with self._lock:
            _ = self._pipeline

    @cached_property
    def _pipeline(self) -> Any:
        import diffusers
        import torch

        try:
            module = importlib.import_module(self._module)
            kind = getattr(module, diffusers.DiffusionPipeline.load_config(str(self.source))["_class_name"])
            with without_bars() if self._module != "diffusers" else nullcontext():
                pipeline = kind.from_pretrained(str(self.source), use_safetensors=True)
        except (OSError, ValueError, AttributeError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BackendError(f"cannot load the image model {self.source}: {reason}", retryable=False) from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``."""
        results: list[GeneratedImage | BackendError] = []
        for index, request in enumerate(requests):
            try:
                results.append(self._generate_one(index, request, on_step))
            except GemsError as error:
                if not isinstance(error, BackendError):
                    raise
                results.append(error)
        return results

    def _generate_one(self, index: int, request: ImageRequest, on_step: StepCallback | None) -> GeneratedImage:
        import torch

        def report(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(Step(index, step + 1, len(pipeline.scheduler.timesteps)))
            return tensors

        with self._lock:
            try:
                edit = request.edit
                source = {"image": edit.image, "keep": edit.keep, "fix": edit.fix} if edit else {}
                [image] = self._pipeline(
                    prompt=request.prompt,
                    **source,
                    generator=torch.Generator("cpu").manual_seed(request.seed),
                    callback_on_step_end=report,
                ).images
            except ValueError as error:  # what diffusers raises for inputs that a pipeline cannot take
                raise InputError(f"{self.name}: {' '.join(str(error).split())[:500]}") from error
            except RuntimeError as error:
                raise BackendError(f"{self.name}: {' '.join(str(error).split())[:500]}") from error
        return GeneratedImage(request, image)
