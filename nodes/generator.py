"""Draws the round's images and files them in the image store."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

from langgraph.errors import GraphDrained, NodeError
from langgraph.runtime import Runtime
from PIL import Image

from gems.errors import BackendError, ContentRefusedError
from gems.graph.context import GemsContext
from gems.graph.routing import awaits_comparison
from gems.graph.state import Attempt, GemsState, Requirement, Usage, all_asked, best_attempt
from gems.memory.image_store import ImageStore, decode_png
from gems.models.generators import (
    Edit,
    GeneratedImage,
    ImageGenerator,
    ImageRequest,
    Step,
    StepCallback,
    is_reproducible,
    takes_negative_prompts,
)
from gems.models.public_names import public_fingerprint, public_name
from gems.nodes.absence import negative_prompt_for
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, report_failure
from gems.seeds import seed_of_attempt

__all__ = ["edit_of", "image_metadata", "make_editor", "make_generator", "without_image"]


def make_generator(resources: Resources) -> Node:
    """The node that appends this round's unverified attempts, drawn from noise."""

    def generator(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        return _draw(resources, state, runtime, None)

    return generator


def make_editor(resources: Resources) -> Node:
    """The node that edits the image of the best attempt: what is right in it stays."""

    def editor(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        return _draw(resources, state, runtime, best_attempt(state["attempts"]))

    return editor


def edit_of(attempt: Attempt, requirements: Sequence[Requirement], image: Image.Image) -> Edit:
    """The edit that mends an attempt's image: what passed in it is kept, the rest is fixed."""
    passed = {verdict.requirement_id for verdict in attempt.answers if verdict.answer == "yes"}
    return Edit(
        image,
        keep=tuple(r.question for r in requirements if r.id in passed),
        fix=tuple(r.question for r in requirements if r.id not in passed),
    )


def _draw(resources: Resources, state: GemsState, runtime: Runtime[GemsContext], base: Attempt | None) -> GemsState:
    """Draw the round's images, from noise or from the image of ``base``, and file them."""
    if state.get("outcome") or awaits_comparison(state):  # a branch before this one gave up, or is not done
        return GemsState()
    watch, context = Stopwatch(), resources.context(runtime)
    attempts = state["attempts"]
    round_ = attempts[-1].round + 1 if attempts else 1
    edit = None
    images = resources.images(context)
    if base is not None:
        png = images.read(base.image)
        edit = edit_of(base, all_asked(state), decode_png(png))
    backend = resources.generator(context)
    requests = _requests(state, context, backend, round_, edit)
    if not requests:
        return GemsState(outcome="budget")

    results = backend.generate(requests, on_step=_step_reporter(runtime, round_))
    errors = [result for result in results if isinstance(result, BackendError)]
    if len(errors) == len(results):
        if all(isinstance(error, ContentRefusedError) for error in errors):
            return _refusal(state, context, errors[0], watch)
        raise errors[0]
    new_attempts = [
        _file_image(images, backend, state, runtime, round_, candidate, result, base)
        for candidate, result in enumerate(results)
        if isinstance(result, GeneratedImage)
    ]
    best = best_attempt([*attempts, *new_attempts])
    return GemsState(
        attempts=[*attempts, *new_attempts],
        refused=[draft for draft in state["refused"] if draft != state["draft"]],
        image=best.image if best else None,
        errors=[*(f"generator: image {error}" for error in errors), *_notes(backend, results, state)],
        usage=Usage(images=len(new_attempts), seconds=watch.seconds),
    )


def _notes(backend: ImageGenerator, results: Sequence[GeneratedImage | BackendError], state: GemsState) -> list[str]:
    """What the user should know about how the images were drawn; each note once in a run."""
    notes = [result.note for result in results if isinstance(result, GeneratedImage) and result.note]
    if not is_reproducible(backend):
        notes.append(f"{backend.name} takes no seed: this run cannot be replayed")
    lines = dict.fromkeys(f"generator: {note}" for note in notes)
    return [line for line in lines if line not in state.get("errors", ())]


def _requests(
    state: GemsState, context: GemsContext, backend: ImageGenerator, round_: int, edit: Edit | None
) -> list[ImageRequest]:
    """The round's images, as many of them as the budget still allows."""
    sizes = range(context.candidates, 0, -1)
    count = next((n for n in sizes if not context.budget.exhausted(state["usage"], images=n)), 0)
    seeds = [
        seed_of_attempt(state["seed"], round_=round_, candidates=context.candidates, candidate=candidate)
        for candidate in range(count)
    ]
    absent = negative_prompt_for(state["requirements"]) if takes_negative_prompts(backend) else ""
    return [ImageRequest(state["draft"], seed, edit, absent) for seed in seeds]


def _step_reporter(runtime: Runtime[GemsContext], round_: int) -> StepCallback:
    """Streams each denoising step, and stops the drawing between two steps if the run is asked to stop."""

    def on_step(step: Step) -> None:
        if runtime.drain_requested and step.step < step.steps:
            # As LangGraph itself does between nodes: the run stops before this node, and can go on from there.
            raise GraphDrained(runtime.drain_reason or "stopped")
        event = {"round": round_, "candidate": step.index, "step": step.step}
        runtime.stream_writer({"event": "step", **event, "steps": step.steps})
        if step.preview is not None:
            runtime.stream_writer({"event": "preview", **event, "jpeg": _base64_jpeg(step.preview)})

    return on_step


def _file_image(
    images: ImageStore,
    backend: ImageGenerator,
    state: GemsState,
    runtime: Runtime[GemsContext],
    round_: int,
    candidate: int,
    result: GeneratedImage,
    base: Attempt | None,
) -> Attempt:
    """Put an image into the store, and make the attempt that refers to it."""
    base_hash = base.image.sha256 if base else ""
    metadata = image_metadata(result.request, backend, edited_from=base_hash)
    ref = images.put(result.image, metadata)
    seed = result.request.seed
    runtime.stream_writer(
        {
            "event": "image",
            "round": round_,
            "candidate": candidate,
            "seed": seed,
            "uri": ref.uri,
            "sha256": ref.sha256,
        }
    )
    return Attempt(
        round=round_,
        candidate=candidate,
        strategy=state["strategy"],
        prompt=result.request.prompt,
        negative_prompt=result.request.negative_prompt,
        seed=seed,
        image=ref,
        edited_from=base_hash,
    )


def _refusal(state: GemsState, context: GemsContext, error: BackendError, watch: Stopwatch) -> GemsState:
    """A refused draft costs a round: the refiner rewords it as long as there are rounds left."""
    refused, attempts = [*state["refused"], state["draft"]], state["attempts"]
    rounds = len(refused) + (attempts[-1].round if attempts else 0)
    update = GemsState(refused=refused, errors=[f"generator: {error}"], usage=Usage(seconds=watch.seconds))
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
