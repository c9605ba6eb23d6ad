"""Reports the steps of a pipeline's call, and lets what the listener raises end the call.

Most pipelines take a callback for the end of a step. Those without one still advance by their scheduler's ``step``. A
pipeline of several stages, such as a prior and a decoder, has a scheduler for each: its steps are those of all stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Final

from PIL import Image

from gems.models.diffusers.families import call_parameters
from gems.models.diffusers.previews import Previews
from gems.models.generators import Step, StepCallback

__all__ = ["StepReporter"]

_ADVANCES: Final = ("step", "batch_step_no_noise")
"""The methods by which schedulers advance; the second one advances several steps at once, as often as it takes."""


class StepReporter:
    """Tells a listener of the steps of one call of a pipeline.

    Args:
        listener: Called after each step of each image.
        indices: The indices of the requests that the call draws.
        previews: Draws the pictures of unfinished images; None for none.
        interval: Steps from one picture to the next.
        aspect: Width divided by height of the images.
    """

    def __init__(
        self, listener: StepCallback, indices: Sequence[int], previews: Previews | None, interval: int, aspect: float
    ) -> None:
        self._listener, self._indices = listener, indices
        self._previews, self._interval, self._aspect = previews, interval, aspect
        self.interruption: BaseException | None = None
        """What the listener raised to end the call."""
        self._steps: int | None = None
        """The steps of all stages of the call; None for the steps of its only one."""
        self._count = 0

    @contextmanager
    def attached(self, pipeline: Any, arguments: dict[str, Any]) -> Iterator[None]:
        """Report the steps of a call with these arguments, which are completed, within the block."""
        lengths = _lengths_of_stages(pipeline, arguments)
        if "callback_on_step_end" in call_parameters(pipeline.__class__) and len(lengths) == 1:
            arguments["callback_on_step_end"] = self._at_step_end
            yield
            return
        self._steps = sum(lengths) if len(lengths) > 1 else None
        self._count = 0
        with ExitStack() as stack:
            for scheduler in _schedulers_of(pipeline):
                stack.enter_context(self._watched(pipeline, scheduler))
            yield

    def _at_step_end(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._report(pipeline, step + 1, tensors.get("latents"))
        return tensors

    @contextmanager
    def _watched(self, pipeline: Any, scheduler: Any) -> Iterator[None]:
        """Let a scheduler report each advance. Only the scheduler that draws the image has latents for previews."""
        methods = [name for name in _ADVANCES if hasattr(scheduler, name)]
        draws = scheduler is getattr(pipeline, "scheduler", None)
        for name in methods:
            setattr(scheduler, name, self._reporting(pipeline, getattr(scheduler, name), draws and name == "step"))
        try:
            yield
        finally:
            for name in methods:
                delattr(scheduler, name)

    def _reporting(self, pipeline: Any, advance: Any, has_latents: bool) -> Any:
        """A method that reports itself. The result of ``step`` has the latents first, in a tuple or an output."""

        @wraps(advance)  # pipelines look into its signature before they give it their generators
        def reporting(*arguments: Any, **options: Any) -> Any:
            result = advance(*arguments, **options)
            self._count += 1
            self._report(pipeline, self._count, result[0] if has_latents else None)
            return result

        return reporting

    def _report(self, pipeline: Any, step: int, latents: Any) -> None:
        # In an edit, the scheduler holds more steps than the pipeline takes.
        steps = self._steps or getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
        pictures: list[Image.Image | None] = [None] * len(self._indices)
        if self._previews and step % self._interval == 0 and latents is not None:
            pictures = self._previews.draw(pipeline, latents, self._aspect)
        try:
            for index, picture in zip(self._indices, pictures, strict=True):
                self._listener(Step(index, step, steps, picture))
        except BaseException as error:
            self.interruption = error
            raise


def _lengths_of_stages(pipeline: Any, arguments: Mapping[str, Any]) -> list[int]:
    """The number of steps of each stage of a call, by its arguments and their defaults."""
    return [
        arguments.get(name, parameter.default)
        for name, parameter in call_parameters(pipeline.__class__).items()
        if name.endswith("num_inference_steps")
    ]


def _schedulers_of(pipeline: Any) -> list[Any]:
    """The schedulers of a pipeline, each once."""
    parts = {id(part): part for part in pipeline.components.values() if hasattr(part, "set_timesteps")}
    return list(parts.values())
