"""Image generation with diffusers pipelines in this process."""

from __future__ import annotations

import gc
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache, cached_property
from pathlib import Path
from queue import LifoQueue
from typing import Any, Final, TypeAlias

from PIL import Image

from gems.errors import BackendError, InputError
from gems.models.devices import pick_devices, pick_dtype
from gems.models.diffusers.defaults import call_defaults, prompting
from gems.models.diffusers.loading import PipelineSource, accepts, is_out_of_memory, load_pipeline
from gems.models.diffusers.previews import Previews
from gems.models.generators import DEFAULTS, Edit, GeneratedImage, ImageRequest, Step, StepCallback, edit_instruction
from gems.models.pocket.weights import folder_fingerprint
from gems.options import GeneratorOptions

__all__ = ["DiffusersGenerator"]

STRENGTH: Final = 0.6
"""How far an edit moves from its image unless told otherwise; the default of diffusers' newer pipelines."""

_ARGUMENTS: Final = {
    "width": "width",
    "height": "height",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "negative_prompt": "negative_prompt",
}
"""Options and the arguments of a pipeline's call that they set."""

_LOADING: Final = frozenset(
    {
        "device",
        "dtype",
        "offload",
        "quantization",
        "vae_tiling",
        "vae_slicing",
        "compile",
        "trust_remote_code",
    }
)
"""Options that decide what is loaded: generators that agree in them share their weights."""

_HERE: Final = _LOADING | _ARGUMENTS.keys() | {"strength", "batch_size", "previews"}

Results: TypeAlias = dict[int, GeneratedImage | BackendError]


class DiffusersGenerator:
    """Any text-to-image ``DiffusionPipeline``, loaded at its first use and once per process.

    Each image has a random generator of its own, on the CPU, so that its noise is the same on any device and in any
    batch. In a batch the last bits of an image may still differ from those of the same image alone, as
    matrix products of other shapes are summed in another order; in batches of one, the default, they never do.

    Args:
        source: ``FOLDER_OR_REPO[@REVISION]``.
        name: What to call this backend in records.
        options: How it is run.
        module: The module that defines the pipeline's class, where that is not diffusers.
    """

    def __init__(
        self, source: str, *, name: str, options: GeneratorOptions = DEFAULTS, module: str = "diffusers"
    ) -> None:
        self.name = name
        self._options = options
        self._source = PipelineSource.parse(source, module=module, trust_remote_code=options.trust_remote_code)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of a local folder's weights; a repository's id and commit otherwise; then that of a .gguf file."""
        folder = self._source.folder
        weights = folder_fingerprint(folder) if folder else f"{self._source.path}@{self._source.commit}"
        file = self._options.quantization
        if file is None or not file.endswith(".gguf") or not Path(file).is_file():
            return weights
        with Path(file).open("rb") as stream:
            return f"{weights}+{hashlib.file_digest(stream, 'sha256').hexdigest()}"

    @property
    def edits(self) -> bool:
        """Whether the pipeline, or its image-to-image sibling in diffusers, can start from an image."""
        return self._editing_class is not None

    @cached_property
    def _editing_class(self) -> type | None:
        from diffusers.pipelines.auto_pipeline import (
            AUTO_IMAGE2IMAGE_PIPELINES_MAPPING as EDITING,
        )
        from diffusers.pipelines.auto_pipeline import (
            AUTO_TEXT2IMAGE_PIPELINES_MAPPING as DRAWING,
        )

        kind = self._source.pipeline_class
        if kind in EDITING.values() or accepts(kind, "keep"):
            return kind
        family = next((name for name, known in DRAWING.items() if known is kind), None)
        sibling: type | None = EDITING.get(family)
        return sibling

    @property
    def guide(self) -> str:
        """See ``Guided.guide``."""
        kind = self._source.pipeline_class
        own: str | None = getattr(kind, "prompting", None)
        return own or prompting(kind.__name__)

    def objection(self, prompt: str) -> str:
        """See ``Guided.objection``; only pipelines of ours can tell beforehand."""
        check: Callable[[str], str] | None = getattr(self._source.pipeline_class, "objection", None)
        return check(prompt) if check else ""

    @property
    def _only_edits(self) -> bool:
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as DRAWING

        kind = self._source.pipeline_class
        return self._editing_class is kind and kind not in DRAWING.values() and not accepts(kind, "keep")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The arguments that each call of the pipeline is given, besides prompts, images and noise.

        Raises:
            InputError: An option is not for this pipeline.
            BackendError: The pipeline is not there, or not known here.
        """
        kind = self._source.pipeline_class
        fields = GeneratorOptions.model_fields
        given = {name: value for name in fields if (value := getattr(self._options, name)) != fields[name].default}
        for option in given:
            if option not in _HERE:
                raise InputError(f"{self.name} runs in this process and has no use for the option {option}")
            if option in _ARGUMENTS and not accepts(kind, _ARGUMENTS[option]):
                raise InputError(f"{self.name}: {kind.__name__} takes no {option}; leave it out")
        if "strength" in given and not (self._editing_class and accepts(self._editing_class, "strength")):
            raise InputError(f"{self.name}: {kind.__name__} edits no images by strength; leave it out")
        if self._only_edits and accepts(kind, "strength"):
            raise InputError(f"{self.name}: {kind.__name__} only refines images; take a text-to-image pipeline")
        chosen = {_ARGUMENTS[option]: value for option, value in given.items() if option in _ARGUMENTS}
        settings = call_defaults(kind.__name__, self._source.path) | chosen
        if accepts(kind, "max_area") and "width" in settings and "height" in settings:
            settings["max_area"] = settings["width"] * settings["height"]  # Kontext scales to this, whatever the size
        return settings

    def load(self) -> None:
        """Load the weights now, rather than at the first image; with several devices, on the first of them.

        Raises:
            InputError: An option does not go with this pipeline or this machine.
            BackendError: They are not there or cannot be loaded.
        """
        _ = self.settings
        with self.replicas.one() as replica:
            _ = replica.pipeline

    def check(self) -> str:
        """One line on what would be run, without loading it.

        Raises:
            InputError: An option does not go with this pipeline or this machine.
            BackendError: The weights or a package are not there, or they do not fit.
        """
        from gems.models.diffusers.check import describe

        edits = f"edits images with {self._editing_class.__name__}" if self._editing_class else "edits no images"
        return f"{describe(self._source, self._options)}; {_listed(self.settings)}; {edits}"

    @property
    def replicas(self) -> Replicas:
        """The copies of its weights; generators that load the same share them."""
        options = GeneratorOptions(**{name: getattr(self._options, name) for name in _LOADING})
        with _LOCK:
            return _replicas(self._source, options)

    @property
    def batch_size(self) -> int:
        """Most images in one call of the pipeline."""
        if self._source.module != "diffusers":
            return 1  # a pipeline of ours: batches bring it nothing, and its images are the same to the last bit
        return self._options.batch_size or 1

    # --- what it does -------------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. With several devices, ``on_step`` is called from several threads."""
        _ = self.settings
        replicas = self.replicas
        batches = list(self._batches(requests, len(replicas.devices)))

        def work(batch: list[int]) -> Results:
            with replicas.one() as replica:
                return self._make(replica, {index: requests[index] for index in batch}, on_step)

        if len(batches) == 1 or len(replicas.devices) == 1:
            done = [work(batch) for batch in batches]
        else:
            with ThreadPoolExecutor(len(replicas.devices)) as pool:
                # Each thread has a copy of this one's context, in which LangGraph keeps where events go.
                futures = [pool.submit(copy_context().run, work, batch) for batch in batches]
                done = [future.result() for future in futures]
        results = {index: result for part in done for index, result in part.items()}
        return [results[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence[ImageRequest], devices: int) -> Iterator[list[int]]:
        """Which requests may go together, by index: edits apart from the rest, spread evenly over the devices."""
        largest = self.batch_size
        for edits in (False, True):
            indices = [index for index, request in enumerate(requests) if (request.edit is not None) == edits]
            # An editor that reads instructions takes several images for several references to one edit.
            size = 1 if edits and not accepts(self._editing_class or object, "strength") else largest
            size = max(1, min(size, math.ceil(len(indices) / devices)))
            yield from (indices[start : start + size] for start in range(0, len(indices), size))

    def _make(self, replica: Replica, requests: dict[int, ImageRequest], on_step: StepCallback | None) -> Results:
        """Make images in one batch or, where the memory does not hold so many at once, in several."""
        results: Results = {}
        waiting, note = list(requests), None
        while waiting:
            batch = waiting[: replica.limit]
            try:
                images = self._call(replica, {index: requests[index] for index in batch}, on_step)
            except RuntimeError as error:
                failure = error if isinstance(error, BackendError) else self._failure(error, len(batch))
            else:
                results |= {k: GeneratedImage(requests[k], i, note) for k, i in zip(batch, images, strict=True)}
                waiting, note = waiting[len(batch) :], None
                continue
            if failure is None:
                replica.free()  # not while the exception is handled: it holds on to what was in use
                replica.limit = len(batch) // 2
                note = f"{self.name}: a batch of {len(batch)} does not fit into memory; going on with {replica.limit}"
                continue
            results |= dict.fromkeys(batch, failure)
            waiting = waiting[len(batch) :]
        return results

    def _failure(self, error: RuntimeError, batch: int) -> BackendError | None:
        """The error to report, or None where a smaller batch may do."""
        if not is_out_of_memory(error):
            return BackendError(f"{self.name}: {' '.join(str(error).split())[:500]}")
        if batch > 1:
            return None
        return BackendError(
            f"{self.name}: one image does not fit into memory; try a smaller width and height, or the options "
            "vae_tiling=true, offload=model or quantization=bnb-4bit",
            retryable=False,
        )

    def _call(
        self, replica: Replica, requests: dict[int, ImageRequest], on_step: StepCallback | None
    ) -> list[Image.Image]:
        """One call of the pipeline."""
        batch = list(requests.values())
        pipeline = replica.pipeline if batch[0].edit is None else replica.editor
        arguments = self._arguments(batch)
        if on_step is not None and accepts(pipeline.__class__, "callback_on_step_end"):
            arguments["callback_on_step_end"] = self._reporter(replica, list(requests), arguments, on_step)
        try:
            images: list[Image.Image] = pipeline(**arguments).images
        except ValueError as error:  # what diffusers raises for inputs that a pipeline cannot take
            raise InputError(f"{self.name}: {' '.join(str(error).split())[:500]}") from error
        finally:
            # After a stop between two steps, or an edit, offloaded models are not yet back where they belong.
            replica.pipeline.maybe_free_model_hooks()
        return images

    def _arguments(self, requests: list[ImageRequest]) -> dict[str, Any]:
        import torch

        settings = dict(self.settings)
        if "negative_prompt" in settings:
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(requests)
        arguments: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
        }
        edits = [request.edit for request in requests if request.edit is not None]
        if edits:
            return arguments | self._editing_arguments(settings, requests, edits)
        if self._only_edits:  # it needs something to edit: a sheet of white paper
            size = (settings.get("width", 1024), settings.get("height", 1024))
            arguments["image"] = [Image.new("RGB", size, "white")]
        return arguments | settings

    def _editing_arguments(
        self, settings: dict[str, Any], requests: list[ImageRequest], edits: list[Edit]
    ) -> dict[str, Any]:
        kind, images = self._editing_class, [edit.image for edit in edits]
        assert kind is not None  # the protocol: edits are only given to generators that edit
        if accepts(kind, "keep"):  # it understands what is to stay
            [edit] = edits
            return settings | {"image": edit.image, "keep": edit.keep, "fix": edit.fix}
        if not accepts(kind, "strength"):  # it reads instructions
            settings["prompt"] = [edit_instruction(request) for request in requests]
        size = (settings.setdefault("width", images[0].width), settings.setdefault("height", images[0].height))
        settings["image"] = [image.convert("RGB").resize(size) for image in images]
        settings["strength"] = self._options.strength or STRENGTH
        if accepts(kind, "strength") and "num_inference_steps" in settings:
            # Strength leaves out the first steps; at least one has to remain.
            settings["num_inference_steps"] = max(settings["num_inference_steps"], math.ceil(1 / settings["strength"]))
        return {name: value for name, value in settings.items() if accepts(kind, name)}

    def _reporter(
        self, replica: Replica, indices: list[int], arguments: dict[str, Any], on_step: StepCallback
    ) -> Callable[..., dict[str, Any]]:
        every = self._options.previews
        previews = replica.previews if every else None
        aspect = arguments.get("width", 1) / arguments.get("height", 1)

        def report(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # Of an edit, the scheduler holds more steps than are made.
            steps = getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
            pictures: list[Image.Image | None] = [None] * len(indices)
            if previews and (step + 1) % every == 0 and "latents" in tensors:
                pictures = previews.draw(pipeline, tensors["latents"], aspect)
            for index, picture in zip(indices, pictures, strict=True):
                on_step(Step(index, step + 1, steps, picture))
            return tensors

        return report


class Replica:
    """A pipeline's weights on one device, used by one thread at a time."""

    def __init__(self, source: PipelineSource, options: GeneratorOptions, device: str) -> None:
        self._source, self._options, self.device = source, options, device
        self.limit: int | None = None
        """The largest batch that is known to fit; None: no batch failed yet."""

    @cached_property
    def pipeline(self) -> Any:
        """Makes images from words."""
        # What is trained and shipped with the package stays in the number type that its images are recorded with.
        dtype = self._options.dtype if self._source.module == "diffusers" else "float32"
        with _LOCK:  # loading switches settings of torch and transformers that all threads share
            return load_pipeline(self._source, self._options, self.device, pick_dtype(dtype, self.device))

    @cached_property
    def editor(self) -> Any:
        """Makes images from images: the pipeline itself, or its sibling on the same weights."""
        from diffusers import AutoPipelineForImage2Image

        if accepts(self.pipeline.__class__, "keep"):
            return self.pipeline
        editor = AutoPipelineForImage2Image.from_pipe(self.pipeline)
        editor.set_progress_bar_config(disable=True)
        return editor

    @cached_property
    def previews(self) -> Previews:
        """Draws previews of its latents."""
        return Previews(self.pipeline)

    def free(self) -> None:
        """Give back the memory that a failed call left behind."""
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Replicas:
    """One replica a device. A second one is loaded only when the first is in use."""

    def __init__(self, source: PipelineSource, options: GeneratorOptions) -> None:
        self.devices = pick_devices(options.device)
        self._free: LifoQueue[Replica] = (
            LifoQueue()
        )  # last in, first out: one that is loaded comes before one that is not
        for device in reversed(self.devices):
            self._free.put(Replica(source, options, device))

    @contextmanager
    def one(self) -> Iterator[Replica]:
        """A replica for the caller alone; waits until there is one."""
        replica = self._free.get()
        try:
            yield replica
        finally:
            self._free.put(replica)


_LOCK: Final = threading.RLock()


@cache
def _replicas(source: PipelineSource, options: GeneratorOptions) -> Replicas:
    return Replicas(source, options)


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in settings.items()) or "the pipeline's own defaults"
