"""Image generation with diffusers pipelines in this process."""

from __future__ import annotations

import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

from PIL import Image

from gems.errors import BackendError, ContentRefusedError, GemsError, InputError
from gems.models.diffusers.call_arguments import call_settings, drawing_arguments, editing_arguments
from gems.models.diffusers.defaults import defaults_of, facts_of
from gems.models.diffusers.families import argument_of, family_of
from gems.models.diffusers.fingerprints import fingerprint_of
from gems.models.diffusers.guides import guide_for, has_negative_prompt
from gems.models.diffusers.loading import is_out_of_memory
from gems.models.diffusers.option_checks import ARGUMENTS, refusals
from gems.models.diffusers.prompt_length import excess_of_prompt
from gems.models.diffusers.replicas import Replica, Replicas, replicas_of
from gems.models.diffusers.soundness import watch_pixels
from gems.models.diffusers.source import PipelineSource, accepts, default_of
from gems.models.diffusers.stepping import StepReporter
from gems.models.generators import DEFAULTS, GeneratedImage, ImageRequest, StepCallback, size_note
from gems.models.option_effects import OptionEffect, effects_of, require_honoured
from gems.options import GeneratorOptions
from gems.shared import holding

__all__ = ["DiffusersGenerator"]

Results: TypeAlias = dict[int, GeneratedImage | BackendError]
"""The images or errors, by the index of the request."""
_UNSAFE: Final = "detected unsafe text in the prompt"
"""What the safety checker of Cosmos says of a prompt that it refuses."""


class DiffusersGenerator:
    """Any text-to-image ``DiffusionPipeline``; its weights are loaded at the first use, once per process.

    Each image has its own random generator on the CPU, so that its noise is the same on every device and in every
    batch. In a batch, the last bits of an image may still differ from the same image drawn alone, since matrix products
    of other shapes are summed in another order. In batches of one, the default, they never differ.

    Args:
        source: ``FOLDER_OR_REPO[@REVISION]``, or a file with the weights.
        name: The name of this backend in records.
        options: How images are drawn.
        may_download: Whether files may be downloaded.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str,
        options: GeneratorOptions = DEFAULTS,
        may_download: bool = True,
    ) -> None:
        self.name = name
        self._options = options
        self._source = PipelineSource.parse(
            source,
            trust_remote_code=options.trust_remote_code,
            config=options.config,
            may_download=may_download,
        )

    # --- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """See ``fingerprint_of``."""
        return fingerprint_of(self._source, self._options)

    @property
    def edits(self) -> bool:
        """Whether the pipeline, or its image-to-image sibling in diffusers, can start from an image."""
        return self._source.editing_class is not None

    @property
    def redraws_edits(self) -> bool:
        """See ``redraws_edits`` of `gems.models.generators`."""
        kind = self._source.editing_class
        return kind is not None and accepts(kind, "strength") and not accepts(kind, "keep")

    @property
    def takes_negative_prompts(self) -> bool:
        """See ``takes_negative_prompts`` of `gems.models.generators`."""
        kind = self._source.pipeline_class
        return has_negative_prompt(kind, call_settings(self.name, self._source, self._options))

    @property
    def guide(self) -> str:
        """See ``Guided.guide``."""
        kind = self._source.pipeline_class
        own_guide: str | None = getattr(kind, "prompting", None) if self._source.is_own else None
        return own_guide or guide_for(self._source, call_settings(self.name, self._source, self._options))

    def objection(self, prompt: str) -> str:
        """See ``Guided.objection``; only our own pipelines object."""
        check: Callable[[str], str] | None = getattr(self._source.pipeline_class, "objection", None)
        return check(prompt) if check else ""

    def excess(self, prompt: str) -> str:
        """See ``ReadsSoMuch.excess``."""
        return excess_of_prompt(self._source, call_settings(self.name, self._source, self._options), prompt)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The arguments of every call of the pipeline, besides prompts, images and noise.

        Raises:
            InputError: The pipeline cannot honour an option.
            BackendError: The pipeline does not exist, or this version of diffusers does not have it.
        """
        settings = call_settings(self.name, self._source, self._options)
        require_honoured(self.name, self.option_effects())
        return settings

    def option_effects(self, *, on_this_machine: bool = True) -> tuple[OptionEffect, ...]:
        """See ``ExplainsOptions.option_effects``."""
        kind, arguments = self._source.pipeline_class, call_settings(self.name, self._source, self._options)
        defaults = {
            option: arguments.get(name, default_of(kind, name))
            for option, argument in ARGUMENTS.items()
            for name in [argument_of(kind, argument)]
        }
        reasons = refusals(self._source, self._options, arguments, on_this_machine=on_this_machine)
        return effects_of(self._options, reasons, {name: v for name, v in defaults.items() if v is not None})

    def load(self) -> None:
        """Load the weights now rather than at the first image; with several devices, on the first one.

        Raises:
            InputError: The pipeline or this machine cannot honour an option.
            BackendError: The weights do not exist, or cannot be loaded.
        """
        _ = self.settings
        with self.replicas.borrow() as replica:
            _ = replica.pipeline

    def check(self) -> str:
        """One line on what would run, without loading it.

        Raises:
            InputError: The pipeline or this machine cannot honour an option.
            BackendError: The weights or a package are missing, or the weights do not fit into memory.
        """
        from gems.models.diffusers.check import describe

        editor = self._source.editing_class
        edits = f"edits images with {editor.__name__}" if editor else "edits no images"
        settings = ", ".join(f"{name} {value!r}" for name, value in self.settings.items())
        parts = (describe(self._source, self._options), settings, str(defaults_of(facts_of(self._source))), edits)
        return "; ".join(filter(None, parts))

    @property
    def replicas(self) -> Replicas:
        """The copies of the weights; generators that load the same weights share them."""
        with holding(self):
            return replicas_of(self._source, self._options)

    @property
    def batch_size(self) -> int:
        """The most images in one call of the pipeline."""
        if self._source.is_own or not family_of(self._source.pipeline_class).is_batch_sound:
            return 1  # our own pipelines gain nothing from batches, and without them their images are reproducible
        return self._options.batch_size or 1

    # --- what it does -------------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. With several devices, ``on_step`` is called from several threads."""
        _ = self.settings
        replicas = self.replicas
        # An editor that reads instructions would take several images for several references of one edit.
        is_alone = not accepts(self._source.editing_class or object, "strength")
        batches = list(_batches(requests, len(replicas.devices), self.batch_size, 1 if is_alone else self.batch_size))

        def draw(batch: list[int]) -> Results:
            with replicas.borrow() as replica:
                return self._draw(replica, {index: requests[index] for index in batch}, on_step)

        if len(batches) == 1 or len(replicas.devices) == 1:
            parts = [draw(batch) for batch in batches]
        else:
            with ThreadPoolExecutor(len(replicas.devices)) as pool:
                # Each thread gets a copy of this context, in which LangGraph keeps the stream for events.
                futures = [pool.submit(copy_context().run, draw, batch) for batch in batches]
                parts = [future.result() for future in futures]
        results = {index: result for part in parts for index, result in part.items()}
        return [results[index] for index in range(len(requests))]

    def _draw(self, replica: Replica, requests: dict[int, ImageRequest], on_step: StepCallback | None) -> Results:
        """Draw images in one batch, or in several smaller ones if memory runs out."""
        results: Results = {}
        waiting, note = list(requests), None
        while waiting:
            batch = waiting[: replica.limit]
            try:
                images = self._call(replica, {index: requests[index] for index in batch}, on_step)
            except RuntimeError as error:
                failure = error if isinstance(error, BackendError) else self._out_of_memory(len(batch))
            else:
                for index, image in zip(batch, images, strict=True):
                    results[index] = self._result(requests[index], image, note)
                waiting, note = waiting[len(batch) :], None
                continue
            if failure is None:
                replica.free()  # after the except block: the exception keeps the tensors of the failed call alive
                replica.limit = len(batch) // 2
                note = f"{self.name}: a batch of {len(batch)} does not fit into memory; going on with {replica.limit}"
                continue
            results |= dict.fromkeys(batch, failure)
            waiting = waiting[len(batch) :]
        return results

    def _result(
        self, request: ImageRequest, image: Image.Image | BackendError, note: str | None
    ) -> GeneratedImage | BackendError:
        """An image with what is to be noted about it: the batch's note, and a size that was not asked for."""
        if isinstance(image, BackendError):
            return image
        size = size_note(self.name, (self._options.width, self._options.height), image)
        excess = self.excess(request.prompt)
        cut = f"{self.name}: {excess.partition(':')[0]}" if excess else None
        return GeneratedImage(request, image, "; ".join(filter(None, (note, size, cut))) or None)

    def _out_of_memory(self, batch: int) -> BackendError | None:
        """The error to report; None if a smaller batch may fit."""
        if batch > 1:
            return None
        return BackendError(
            f"{self.name}: one image does not fit into memory; try a smaller width and height, or the options "
            "vae_tiling=true, offload=model or quantization=bnb-4bit",
            retryable=False,
        )

    def _call(
        self, replica: Replica, requests: dict[int, ImageRequest], on_step: StepCallback | None
    ) -> list[Image.Image | BackendError]:
        """Draw a batch with one call of the pipeline. What is no image, such as NaN, is an error."""
        batch, reporter = list(requests.values()), None
        is_edit = batch[0].edit is not None
        kind = self._source.editing_class if is_edit else self._source.pipeline_class
        assert kind is not None  # by the protocol, only generators that edit are given edits
        name, pipeline = f"{self.name}: {kind.__name__}", replica.pipeline
        try:
            if is_edit:
                pipeline = replica.editor
                arguments = editing_arguments(self._source, self.settings, batch, self._options.strength)
            else:
                arguments = drawing_arguments(self._source, self.settings, batch)
            if on_step is not None:
                reporter = self._reporter(replica, list(requests), arguments, on_step)
            with watch_pixels(pipeline) as watch, reporter.attached(pipeline, arguments) if reporter else nullcontext():
                output = pipeline(**arguments)
        except Exception as error:
            if reporter and reporter.interruption:
                raise reporter.interruption from None
            if isinstance(error, GemsError) or is_out_of_memory(error):
                raise
            raise _failure(error, name) from error
        finally:
            # A call that was stopped, or an edit, leaves offloaded models on the device.
            replica.pipeline.maybe_free_model_hooks()
        return watch.results_of(output, family_of(kind).output, name)

    def _reporter(
        self, replica: Replica, indices: list[int], arguments: dict[str, Any], on_step: StepCallback
    ) -> StepReporter:
        """Reports each step of a call, with previews if the options ask for them."""
        interval = self._options.previews
        aspect = arguments.get("width", 1) / arguments.get("height", 1)
        return StepReporter(on_step, indices, replica.previews if interval else None, interval, aspect)


def _batches(requests: Sequence[ImageRequest], devices: int, most: int, most_edits: int) -> Iterator[list[int]]:
    """Batches of requests, by index, spread evenly over the devices, with at most so many requests or edits in each.

    Edits are apart from the others; so are requests with a negative prompt, since an empty one is not the same as none
    to every pipeline.
    """
    for kind in itertools.product((False, True), repeat=2):
        indices = [i for i, r in enumerate(requests) if (r.edit is not None, bool(r.negative_prompt)) == kind]
        size = max(1, min(most_edits if kind[0] else most, math.ceil(len(indices) / devices)))
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _failure(error: Exception, name: str) -> GemsError:
    """The error to report for what a pipeline's call raised, with the line of its code that did.

    Args:
        error: What it raised.
        name: The names of the generator and the pipeline.
    """
    message = " ".join(str(error).split())[:500]
    if isinstance(error, ValueError) and _UNSAFE in message:
        return ContentRefusedError(f"{name}: {message}")
    if isinstance(error, ValueError):  # diffusers raises it for inputs that a pipeline cannot take
        return InputError(f"{name}: {message}")
    import diffusers

    library, frames = str(Path(diffusers.__file__).parent), traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename.startswith(library)), frames[-1])
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    # What the machine raises may pass; what the code raises comes again with the same prompt.
    is_passing = isinstance(error, (RuntimeError, OSError)) and not isinstance(error, NotImplementedError)
    return BackendError(f"{name} failed with {type(error).__name__}: {message} ({place})", retryable=is_passing)
