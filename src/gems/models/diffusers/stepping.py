"""Reports the steps of a pipeline's call, and lets what the listener raises end the call.

Most pipelines take a callback for the end of a step. Those without one still advance by their scheduler's ``step``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from PIL import Image

from gems.models.diffusers.families import call_parameters
from gems.models.diffusers.previews import Previews
from gems.models.generators import Step, StepCallback

__all__ = ["StepReporter"]


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

    @contextmanager
    def attached(self, pipeline: Any, arguments: dict[str, Any]) -> Iterator[None]:
        """Report the steps of a call with these arguments, which are completed, within the block."""
        scheduler: Any = getattr(pipeline, "scheduler", None)
        if "callback_on_step_end" in call_parameters(pipeline.__class__):
            arguments["callback_on_step_end"] = self._at_step_end
            yield
        elif hasattr(scheduler, "step"):
            scheduler.step = self._watched(pipeline, scheduler.step)
            try:
                yield
            finally:
                del scheduler.step
        else:
            yield

    def _at_step_end(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._report(pipeline, step + 1, tensors.get("latents"))
        return tensors

    def _watched(self, pipeline: Any, step: Any) -> Any:
        """A scheduler's ``step`` that reports itself. Its result has the latents first, in a tuple or an output."""
        count = 0

        @wraps(step)  # pipelines look into its signature before they give it their generators
        def watched(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            result = step(*arguments, **options)
            count += 1
            self._report(pipeline, count, result[0])
            return result

        return watched

    def _report(self, pipeline: Any, step: int, latents: Any) -> None:
        # In an edit, the scheduler holds more steps than the pipeline takes.
        steps = getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
        pictures: list[Image.Image | None] = [None] * len(self._indices)
        if self._previews and step % self._interval == 0 and latents is not None:
            pictures = self._previews.draw(pipeline, latents, self._aspect)
        try:
            for index, picture in zip(self._indices, pictures, strict=True):
                self._listener(Step(index, step, steps, picture))
        except BaseException as error:
            self.interruption = error
            raise
