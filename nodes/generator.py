"""Draws the round's images and files them in the image store."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from langgraph.errors import GraphBubbleUp, GraphDrained, NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command
from PIL import Image

from gems.errors import BackendError, ContentRefusedError, GemsError
from gems.faces import in_thread, runs_here, together, until_cancelled
from gems.graph.context import GemsContext
from gems.graph.routing import awaits_comparison, drawing_of
from gems.graph.state import Assignment, Attempt, GemsState, Requirement, Usage
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
    opaque,
    takes_negative_prompts,
    unless_stopped,
)
from gems.models.public_names import public_fingerprint, public_name
from gems.nodes.absence import negative_prompt_for
from gems.nodes.examiner import Inspection, with_verdicts
from gems.nodes.looking_ahead import LookAhead
from gems.nodes.meter import Meter, metered, paid_answers
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, is_backend_failure, report_failure
from gems.secrets import one_line
from gems.seeds import seed_of_attempt
from gems.stopping import is_cancelled, is_stopping

__all__ = ["edit_of", "image_metadata", "make_editor", "make_generator", "without_image"]

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)


def make_generator(resources: Resources) -> Node:
    """The node that appends unverified attempts of one proposal, drawn from noise or from the image to be edited.

    It is sent an ``Assignment``. Where an error handler or an older checkpoint names it as the next node, it is handed
    the whole state instead, and sends an assignment for each proposal.
    """

    async def generator(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState | Command[Any]:
        return await _draw(resources, state, runtime, "generator")

    return generator


def make_editor(resources: Resources) -> Node:
    """The node that edits the image of the best attempt: what is right in it stays."""

    async def editor(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState | Command[Any]:
        return await _draw(resources, state, runtime, "editor")

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
    resources: Resources, state: GemsState | Assignment, runtime: Runtime[GemsContext], node: str
) -> GemsState | Command[Any]:
    """Draw what the node is sent."""
    if "proposal" in state:
        return await _draw_proposal(resources, cast(Assignment, state), runtime, node)
    if state.get("outcome") or awaits_comparison(state):  # a branch before this one gave up, or is not done
        return GemsState()
    return Command(goto=drawing_of(state))


async def _draw_proposal(
    resources: Resources, assignment: Assignment, runtime: Runtime[GemsContext], node: str
) -> GemsState:
    context = resources.context(runtime)
    with metered(assignment, node, context, is_chatting=False) as meter:
        easel = await in_thread(_Easel, resources, context, assignment, runtime, meter)
        requests = await in_thread(easel.requests)
        if not requests:
            return GemsState(round=easel.round, undrawn=["budget"], usage=meter.usage)
        results = await easel.draw(requests)
        errors = [result for result in results.values() if isinstance(result, BackendError)]
        if len(errors) == len(results):
            if all(isinstance(error, ContentRefusedError) for error in errors):
                prompt = assignment["proposal"].prompt
                return GemsState(
                    round=easel.round,
                    refused=[prompt],
                    undrawn=["refused"],
                    errors=[f"generator: {errors[0]}"],
                    usage=meter.usage,
                )
            raise errors[0]
    drawings = [result for result in results.values() if isinstance(result, _Drawing)]
    attempts = [drawing.attempt for drawing in drawings]
    failures = [f"generator: image {error}" for error in errors]
    return GemsState(
        round=easel.round,  # checkpoints of older versions have none
        attempts=[easel.look_ahead.verified(attempt) for attempt in attempts],
        errors=[*failures, *dict.fromkeys(easel.look_ahead.notes)],
        notes=_notes(easel.backend, drawings),
        usage=meter.usage,
    )


class _Drawing(NamedTuple):
    """An image that is filed, and what the user should know about how it was drawn."""

    attempt: Attempt
    note: str | None


_Result: TypeAlias = _Drawing | BackendError


class _Easel:
    """Draws the images of one proposal, and files each as soon as it is there.

    Args:
        resources: The models and stores.
        context: The run's settings.
        assignment: What to draw.
        runtime: Where events are streamed to.
        meter: Counts the images. What an interrupted try of the node has made is not drawn again.
    """

    def __init__(
        self,
        resources: Resources,
        context: GemsContext,
        assignment: Assignment,
        runtime: Runtime[GemsContext],
        meter: Meter,
    ) -> None:
        self.images, self.backend = resources.images(context), resources.generator(context)
        self.context, self.assignment, self.runtime = context, assignment, runtime
        self.meter, self.drawings = meter, meter.done
        self.proposal, self.round, base = assignment["proposal"], assignment["round"], assignment["edit_from"]
        self._base, self._base_hash = base, base.image.sha256 if base else ""
        self.look_ahead = LookAhead(resources, context, assignment, runtime, meter)
        self._fingerprint, self._turns = self.backend.fingerprint, resources.turns(self.backend)

    def requests(self) -> dict[int, ImageRequest]:
        """The proposal's images by candidate: those that an earlier try has made, and others as the budget allows."""
        context, assignment, base, edit = self.context, self.assignment, self._base, None
        if base is not None:
            required = [*assignment["requirements"], *assignment["checks"]]
            edit = edit_of(base, required, decode_png(self.images.read(base.image)))
        absent = negative_prompt_for(assignment["requirements"]) if takes_negative_prompts(self.backend) else ""
        # All proposals are sent at the same usage, and so come to the same number of images for the round.
        most = self._room(assignment["usage"], max(context.images_per_round, assignment["places"]))
        requests = {
            candidate: ImageRequest(self.proposal.prompt, self._seed(candidate), edit, absent)
            for candidate in range(assignment["place"], most, assignment["places"])
        }
        new = [candidate for candidate, request in requests.items() if self._key(request) not in self.drawings]
        beyond = new[self._room(self.meter.total_of_team, len(new)) :]
        return {candidate: request for candidate, request in requests.items() if candidate not in beyond}

    def _room(self, usage: Usage, most: int) -> int:
        """How many images the budget has room for."""
        budget = self.context.budget
        return next((size for size in range(most, 0, -1) if not budget.exhausted(usage, images=size)), 0)

    def _seed(self, candidate: int) -> int:
        candidates = self.context.images_per_round
        seed = self.assignment["seed"]
        return seed_of_attempt(seed, round_=self.round, candidates=candidates, candidate=candidate)

    async def draw(self, requests: Mapping[int, ImageRequest]) -> dict[int, _Result]:
        """Draw images: in this process as many at once as it can, on a server at the same time.

        While a server draws the last ones, those that have arrived are looked at.

        Raises:
            GraphDrained: The run is to stop, and there is no image that was paid.
        """
        candidates = [c for c, request in requests.items() if self._key(request) not in self.drawings]
        errors: dict[int, BackendError | GraphDrained] = {}
        if draws_for_many(self.backend):

            async def paint(candidate: int) -> None:
                await self._paint(requests, [candidate], errors)
                drawing = self.drawings.get(self._key(requests[candidate]))
                await self.look_ahead.arrive(candidate, drawing.attempt if drawing else None)

            self.look_ahead.await_images(candidates)
            await together([paint(candidate) for candidate in candidates])
        else:
            size = await in_thread(images_at_once, self.backend) or max(1, len(candidates))
            for start in range(0, len(candidates), size):
                async with self._turns:
                    await self._paint(requests, candidates[start : start + size], errors)
        results = unless_stopped([self.drawings.get(self._key(r)) or errors[c] for c, r in requests.items()])
        return dict(zip(requests, results, strict=True))

    async def _paint(
        self,
        requests: Mapping[int, ImageRequest],
        candidates: Sequence[int],
        errors: dict[int, BackendError | GraphDrained],
    ) -> None:
        """Draw some of the images in one call of the generator, and file them."""

        def on_step(step: Step) -> None:
            try:
                self._report(replace(step, index=candidates[step.index]))
            except Exception as error:
                faults_of_ours.append(error)
                raise

        def paint() -> None:
            with self._failures_told(faults_of_ours):
                results = _checked(self.backend.generate(group, on_step=on_step), len(candidates), self.backend.name)
            file_all(results)

        async def paint_here(backend: Asynchronous) -> None:
            images = charge.unless_failed(backend.agenerate(group, on_step=on_step), draws_for_many(self.backend))
            with self._failures_told(faults_of_ours):
                results = _checked(await until_cancelled(images), len(candidates), self.backend.name)
            await in_thread(file_all, results)

        def file_all(results: Sequence[GeneratedImage | BackendError]) -> None:
            outcomes = dict(zip(candidates, map(opaque, results), strict=True))
            new_images = {c: result for c, result in outcomes.items() if isinstance(result, GeneratedImage)}
            errors.update({c: error for c, error in outcomes.items() if isinstance(error, BackendError)})
            charge.settle(len(new_images))
            for candidate, result in new_images.items():
                self._file(candidate, result, self._key(requests[candidate]))

        faults_of_ours = list[Exception]()
        group, charge = [requests[candidate] for candidate in candidates], _Charge(self.meter, len(candidates))
        token = ASKS.set(charge.ask)
        try:
            if isinstance(self.backend, Asynchronous) and not runs_here():
                await paint_here(self.backend)
            else:
                await in_thread(paint)
        except GraphDrained as stop:
            if not draws_for_many(self.backend):
                raise
            errors[candidates[0]] = stop
        finally:
            ASKS.reset(token)

    @contextmanager
    def _failures_told(self, faults_of_ours: Sequence[Exception]) -> Iterator[None]:
        """Let whatever a generator raises, which may be a bug in it, end the drawing and not the run.

        The best image so far is kept, and nobody draws again, and pays again, what fails in the same way. In the first
        round there is no image to keep, and a full disk is no fault of the generator: these are raised.
        """
        try:
            yield
        except (GemsError, GraphBubbleUp, CancelledError):
            raise
        except Exception as error:
            is_ours = isinstance(error, OSError) or any(error is fault for fault in faults_of_ours)
            if is_ours or is_backend_failure(error) or self.round == 1:
                raise
            name = public_name(self.backend.name)
            _LOG.exception("the generator %s failed", name)
            words = f"{type(error).__name__}: {one_line(error, 300)}".removesuffix(": ")
            raise BackendError(f"{name} failed: {words}", retryable=False) from error

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
        return request.prompt, request.negative_prompt, request.seed, self._base_hash, self._fingerprint

    def _file(self, candidate: int, result: GeneratedImage, key: tuple[object, ...]) -> None:
        """Put an image into the store, and make the attempt that refers to it."""
        request = result.request
        ref = self.images.put(result.image, image_metadata(request, self.backend, edited_from=self._base_hash))
        attempt = Attempt(
            round=self.round,
            candidate=candidate,
            strategy=self.proposal.strategy,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            image=ref,
            edited_from=self._base_hash,
        )
        self.drawings[key] = _Drawing(attempt, result.note)
        if not is_cancelled():  # else nobody listens any more
            event = {
                "event": "image",
                **attempt.model_dump(include={"round", "candidate", "strategy", "prompt", "seed"}),
            }
            self.runtime.stream_writer({**event, "uri": ref.uri, "sha256": ref.sha256})


class _Charge:
    """The images of one call of the generator, as the meter counts them: from when they are asked for.

    Args:
        meter: Counts the images.
        count: How many images the call is for.
    """

    def __init__(self, meter: Meter, count: int) -> None:
        self._meter, self._images = meter, [object() for _ in range(count)]
        self._count = count

    def ask(self, is_asked: bool | None) -> bool:
        """See ``ASKS``: a server's client says when it asks, and what has come of it."""
        if is_asked is False:
            self._meter.images.difference_update(self._images)
        elif is_asked is None:  # what may be charged stays counted
            self._images.clear()
        asked_for = [object() for _ in range(self._count)] if is_asked else []
        has_room = self._meter.may_draw(self._count, asked_for)
        if is_asked and has_room:
            self._images[:] = asked_for
        return has_room

    async def unless_failed(self, images: Awaitable[T], is_server: bool) -> T:
        """Wait for the images; they are not counted if the generator raises."""
        if not is_server:  # a server's client says itself when it asks
            self._meter.images.update(self._images)
        try:
            return await images
        except Exception as error:
            if not isinstance(error, GraphDrained):
                self.ask(False)
            raise

    def settle(self, image_count: int) -> None:
        """Count as many images as were drawn."""
        self._meter.images.difference_update(self._images)
        self._meter.images.update(self._images[:image_count])


def _checked(results: object, count: int, name: str) -> list[GeneratedImage | BackendError]:
    """What a generator, which may be the user's code, has returned.

    Raises:
        TypeError: It is not what ``ImageGenerator.generate`` returns.
    """
    outcomes = list(results) if isinstance(results, Iterable) else [results]
    valid = [outcome for outcome in outcomes if isinstance(outcome, (GeneratedImage, BackendError))]
    if len(valid) != len(outcomes) or len(valid) != count:
        kinds = [type(outcome).__name__ for outcome in outcomes if outcome not in valid]
        returned = f"an object of type {kinds[0]}" if kinds else f"{len(outcomes)} results"
        raise TypeError(
            f"the generator {name} returned {returned} for {count} requests: it has to return a list with a "
            "GeneratedImage or a BackendError for each"
        )
    return valid


def _notes(backend: ImageGenerator, drawings: Sequence[_Drawing]) -> list[str]:
    """What the user should know about how the images were drawn."""
    notes = [drawing.note for drawing in drawings if drawing.note]
    if not is_reproducible(backend):
        notes.append(f"{public_name(backend.name)} takes no seed: this run cannot be replayed")
    return notes


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


def without_image(state: GemsState | Assignment, error: NodeError) -> Goto:
    """Go on without a proposal's images after a generator has failed for good. Those that there are still count.

    Some may be there even of this proposal: a server has drawn them before it failed, or at the same time.
    """
    outcome: GemsState = {"undrawn": ["failed"]}
    if "proposal" in state:
        assignment = cast(Assignment, state)
        if attempts := _paid_attempts(assignment, error.node):
            outcome = {"attempts": attempts}
        elif isinstance(error.error, ContentRefusedError):  # raised, rather than returned
            outcome = {"undrawn": ["refused"], "refused": [assignment["proposal"].prompt]}
    return report_failure(cast(GemsState, state), error, "verifier", **outcome)


def _paid_attempts(assignment: Assignment, node: str) -> list[Attempt]:
    """The images that a task's failed tries have drawn, with the verdicts of those that were looked at."""
    results, requirements = paid_answers(assignment, node), assignment["requirements"]
    attempts = [result.attempt for result in list(results.values()) if isinstance(result, _Drawing)]
    return [
        with_verdicts(attempt, inspection, len(requirements))
        if isinstance(inspection := results.get(attempt.image.sha256), Inspection)
        else attempt
        for attempt in attempts
        if (attempt.round, attempt.prompt) == (assignment["round"], assignment["proposal"].prompt)
    ]


def _base64_jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()
