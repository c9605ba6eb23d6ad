"""Draws the round's images and files them in the image store."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from langgraph.errors import GraphDrained, NodeError
from langgraph.runtime import Runtime
from PIL import Image

from gems.errors import BackendError, ContentRefusedError
from gems.faces import in_thread, runs_here, together, until_cancelled
from gems.graph.context import GemsContext
from gems.graph.routing import awaits_comparison
from gems.graph.state import Attempt, GemsState, Requirement, all_asked, best_attempt
from gems.memory.image_store import decode_png
from gems.models.generators import (
    ASKS,
    Asynchronous,
    Edit,
    GeneratedImage,
    ImageGenerator,
    ImageRequest,
    Step,
    draws_for_many,
    images_at_once,
    is_reproducible,
    takes_negative_prompts,
    unless_stopped,
)
from gems.models.public_names import public_fingerprint, public_name
from gems.nodes.absence import negative_prompt_for
from gems.nodes.meter import Meter, metered
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, report_failure
from gems.seeds import seed_of_attempt
from gems.stopping import is_cancelled, is_stopping

__all__ = ["edit_of", "image_metadata", "make_editor", "make_generator", "without_image"]


def make_generator(resources: Resources) -> Node:
    """The node that appends this round's unverified attempts, drawn from noise."""

    async def generator(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        return await _draw(resources, state, runtime, "generator", None)

    return generator


def make_editor(resources: Resources) -> Node:
    """The node that edits the image of the best attempt: what is right in it stays."""

    async def editor(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        return await _draw(resources, state, runtime, "editor", best_attempt(state["attempts"]))

    return editor


def edit_of(attempt: Attempt, requirements: Sequence[Requirement], image: Image.Image) -> Edit:
    """The edit that mends an attempt's image: what passed in it is kept, the rest is fixed."""
    passed = {verdict.requirement_id for verdict in attempt.answers if verdict.answer == "yes"}
    return Edit(
        image,
        keep=tuple(r.question for r in requirements if r.id in passed),
        fix=tuple(r.question for r in requirements if r.id not in passed),
    )


async def _draw(
    resources: Resources, state: GemsState, runtime: Runtime[GemsContext], node: str, base: Attempt | None
) -> GemsState:
    """Draw the round's images, from noise or from the image of ``base``, and file them."""
    if state.get("outcome") or awaits_comparison(state):  # a branch before this one gave up, or is not done
        return GemsState()
    context, attempts = resources.context(runtime), state["attempts"]
    with metered(state, node, context, is_chatting=False) as meter:
        easel = await in_thread(_Easel, resources, context, state, runtime, base, meter)
        requests = await in_thread(easel.requests)
        if not requests:
            return GemsState(outcome="budget", usage=meter.usage)
        results = await easel.draw(requests)
        errors = [result for result in results if isinstance(result, BackendError)]
        if len(errors) == len(results):
            if all(isinstance(error, ContentRefusedError) for error in errors):
                return _refusal(state, context, errors[0], meter)
            raise errors[0]
    drawings = [result for result in results if isinstance(result, _Drawing)]
    new_attempts = [drawing.attempt for drawing in drawings]
    best = best_attempt([*attempts, *new_attempts])
    return GemsState(
        attempts=[*attempts, *new_attempts],
        refused=[draft for draft in state["refused"] if draft != state["draft"]],
        image=best.image if best else None,
        errors=[*(f"generator: image {error}" for error in errors), *_notes(easel.backend, drawings, state)],
        usage=meter.usage,
    )


class _Drawing(NamedTuple):
    """An image that is filed, and what the user should know about how it was drawn."""

    attempt: Attempt
    note: str | None


_Result: TypeAlias = _Drawing | BackendError


class _Easel:
    """Draws the images of one round, and files each as soon as it is there.

    Args:
        resources: The models and stores.
        context: The run's settings.
        state: The run's state.
        runtime: Where events are streamed to.
        base: The attempt whose image is edited; None to draw from noise.
        meter: Counts the images. What an interrupted try of the node has made is not drawn again.
    """

    def __init__(
        self,
        resources: Resources,
        context: GemsContext,
        state: GemsState,
        runtime: Runtime[GemsContext],
        base: Attempt | None,
        meter: Meter,
    ) -> None:
        self.images, self.backend = resources.images(context), resources.generator(context)
        self.context, self.state, self.runtime, self.base = context, state, runtime, base
        self.meter, self.drawings = meter, meter.done
        self._fingerprint, self._turns = self.backend.fingerprint, resources.turns(self.backend)
        attempts = state["attempts"]
        self.round = attempts[-1].round + 1 if attempts else 1

    def requests(self) -> list[ImageRequest]:
        """The round's images: those that an earlier try has made, and as many others as the budget still allows."""
        context, state, base, edit = self.context, self.state, self.base, None
        if base is not None:
            edit = edit_of(base, all_asked(state), decode_png(self.images.read(base.image)))
        seeds = [
            seed_of_attempt(state["seed"], round_=self.round, candidates=context.candidates, candidate=candidate)
            for candidate in range(context.candidates)
        ]
        absent = negative_prompt_for(state["requirements"]) if takes_negative_prompts(self.backend) else ""
        requests = [ImageRequest(state["draft"], seed, edit, absent) for seed in seeds]
        new = [request for request in requests if self._key(request) not in self.drawings]
        usage, sizes = self.meter.total, range(len(new), 0, -1)
        room = next((size for size in sizes if not context.budget.exhausted(usage, images=size)), 0)
        return [request for request in requests if request not in new[room:]]

    async def draw(self, requests: Sequence[ImageRequest]) -> list[_Result]:
        """Draw the images: on a server at the same time, in this process as many at once as it can.

        Raises:
            GraphDrained: The run is to stop, and there is no image that was paid.
        """
        indices = [index for index, request in enumerate(requests) if self._key(request) not in self.drawings]
        errors: dict[int, BackendError | GraphDrained] = {}
        if draws_for_many(self.backend):
            await together([self._paint(requests, [index], errors) for index in indices])
        else:
            size = await in_thread(images_at_once, self.backend) or max(1, len(indices))
            for start in range(0, len(indices), size):
                async with self._turns:
                    await self._paint(requests, indices[start : start + size], errors)
        return unless_stopped(
            [self.drawings.get(self._key(request)) or errors[i] for i, request in enumerate(requests)]
        )

    async def _paint(
        self, requests: Sequence[ImageRequest], indices: Sequence[int], errors: dict[int, BackendError | GraphDrained]
    ) -> None:
        """Draw some of the images in one call of the generator, and file them."""

        def on_step(step: Step) -> None:
            self._report(replace(step, index=indices[step.index]))

        def paint() -> None:
            file_all(self.backend.generate(group, on_step=on_step))

        def ask(is_asked: bool | None) -> bool:
            if is_asked is False:
                images.difference_update(group_images)
            elif is_asked is None:  # what may be charged stays counted
                group_images.clear()
            has_room = self._has_room(len(indices))
            if is_asked and has_room:
                group_images[:] = [object() for _ in indices]
                images.update(group_images)
            return has_room

        async def counted(
            results: Awaitable[list[GeneratedImage | BackendError]],
        ) -> list[GeneratedImage | BackendError]:
            if not draws_for_many(self.backend):  # a server's client says itself when it asks
                images.update(group_images)
            try:
                return await results
            except Exception as error:
                if not isinstance(error, GraphDrained):
                    ask(False)
                raise

        def file_all(results: Sequence[GeneratedImage | BackendError]) -> None:
            by_index = dict(zip(indices, results, strict=True))
            new_images = {index: result for index, result in by_index.items() if isinstance(result, GeneratedImage)}
            errors.update({index: error for index, error in by_index.items() if isinstance(error, BackendError)})
            images.difference_update(group_images)
            images.update(group_images[: len(new_images)])
            for index, result in new_images.items():
                self._file(index, result, self._key(requests[index]))

        group, images, group_images = (
            [requests[index] for index in indices],
            self.meter.images,
            [object() for _ in indices],
        )
        token = ASKS.set(ask)
        try:
            if isinstance(self.backend, Asynchronous) and not runs_here():
                results = await until_cancelled(counted(self.backend.agenerate(group, on_step=on_step)))
                await in_thread(file_all, results)
            else:
                await in_thread(paint)
        except GraphDrained as stop:
            if not draws_for_many(self.backend):
                raise
            errors[indices[0]] = stop
        finally:
            ASKS.reset(token)

    def _has_room(self, images: int) -> bool:
        """Whether the budget has room for so many images more, which may be tries of the same one."""
        total = self.meter.total.model_copy(update={"seconds": 0.0})  # what was begun may last longer
        return self.context.budget.exhausted(total, images=images) is None

    def _report(self, step: Step) -> None:
        """Stream a denoising step, and stop the drawing between two steps if the run is asked to stop."""
        if is_stopping() and step.step < step.steps:
            # As LangGraph itself does between nodes: the run stops before this node, and can go on from there.
            raise GraphDrained(self.runtime.drain_reason or "stopped")
        event = {"round": self.round, "candidate": step.index, "step": step.step}
        self.runtime.stream_writer({"event": "step", **event, "steps": step.steps})
        if step.preview is not None:
            self.runtime.stream_writer({"event": "preview", **event, "jpeg": _base64_jpeg(step.preview)})

    def _key(self, request: ImageRequest) -> tuple[object, ...]:
        """Identifies a drawing among those of earlier tries, whose draft or model may have been another."""
        base_hash = self.base.image.sha256 if self.base else ""
        return request.prompt, request.negative_prompt, request.seed, base_hash, self._fingerprint

    def _file(self, candidate: int, result: GeneratedImage, key: tuple[object, ...]) -> None:
        """Put an image into the store, and make the attempt that refers to it."""
        request, base_hash = result.request, self.base.image.sha256 if self.base else ""
        ref = self.images.put(result.image, image_metadata(request, self.backend, edited_from=base_hash))
        attempt = Attempt(
            round=self.round,
            candidate=candidate,
            strategy=self.state["strategy"],
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            image=ref,
            edited_from=base_hash,
        )
        self.drawings[key] = _Drawing(attempt, result.note)
        if not is_cancelled():  # else nobody listens any more
            event = {"event": "image", "round": self.round, "candidate": candidate, "seed": request.seed}
            self.runtime.stream_writer({**event, "uri": ref.uri, "sha256": ref.sha256})


def _notes(backend: ImageGenerator, drawings: Sequence[_Drawing], state: GemsState) -> list[str]:
    """What the user should know about how the images were drawn; each note once in a run."""
    notes = [drawing.note for drawing in drawings if drawing.note]
    if not is_reproducible(backend):
        notes.append(f"{backend.name} takes no seed: this run cannot be replayed")
    lines = dict.fromkeys(f"generator: {note}" for note in notes)
    return [line for line in lines if line not in state.get("errors", ())]


def _refusal(state: GemsState, context: GemsContext, error: BackendError, meter: Meter) -> GemsState:
    """A refused draft costs a round: the refiner rewords it as long as there are rounds left."""
    refused, attempts = [*state["refused"], state["draft"]], state["attempts"]
    rounds = len(refused) + (attempts[-1].round if attempts else 0)
    update = GemsState(refused=refused, errors=[f"generator: {error}"], usage=meter.usage)
    if rounds >= context.max_rounds:
        update["outcome"] = "rounds" if attempts else "failed"
    return update


def image_metadata(request: ImageRequest, generator: ImageGenerator, *, edited_from: str = "") -> dict[str, str]:
    """The PNG text chunks of an image: A1111's "parameters", and the same as JSON. No time, so that bytes repeat.

    Images are passed on, so there is no server's address in them, and no folder of this machine.
    """
    model, model_hash = public_name(generator.name), public_fingerprint(generator.fingerprint)
    record: dict[str, object] = {
        "prompt": request.prompt,
        "seed": request.seed,
        "model": model,
        "model_hash": model_hash,
    }
    negative = ""
    if request.negative_prompt:
        record["negative_prompt"] = request.negative_prompt
        negative = f"\nNegative prompt: {request.negative_prompt}"
    if request.edit is not None:
        record["edit"] = {"from": edited_from, "keep": request.edit.keep, "fix": request.edit.fix}
    return {
        "parameters": f"{request.prompt}{negative}\nSeed: {request.seed}, Model: {model}, "
        f"Model hash: {model_hash[:10]}, Version: GEMS",
        "gems": json.dumps(record, sort_keys=True),
    }


def without_image(state: GemsState, error: NodeError) -> Goto:
    """End the run after a generator has failed for good. The images of earlier rounds are still the result."""
    return report_failure(state, error, "store_memory", outcome="failed")


def _base64_jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()
