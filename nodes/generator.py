"""Makes the round's images and files them in the image store."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

from langgraph.errors import GraphDrained, NodeError
from langgraph.runtime import Runtime
from PIL import Image

from gems.errors import BackendError, ContentRefusedError
from gems.graph.context import MAX_SEED, GemsContext
from gems.graph.state import Attempt, GemsState, Requirement, Usage, all_asked, best_attempt
from gems.models.generators import Edit, GeneratedImage, ImageGenerator, ImageRequest, Step
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, report_failure

__all__ = ["edit_of", "image_metadata", "make_editor", "make_generator", "without_image"]


def make_generator(resources: Resources) -> Node:
    """The node that appends this round's unverified attempts, drawn from noise."""

    def generator(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        return _draw(resources, state, runtime, None)

    return generator


def make_editor(resources: Resources) -> Node:
    """The same, starting from the image of the best attempt: what is right in it stays."""

    def editor(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        return _draw(resources, state, runtime, best_attempt(state["attempts"]))

    return editor


def edit_of(attempt: Attempt, requirements: Sequence[Requirement], image: Image.Image) -> Edit:
    """What an edit of an attempt's image is told: what passed in it, and what did not."""
    passed = {v.requirement_id for v in attempt.answers if v.answer == "yes"}
    return Edit(
        image,
        keep=tuple(r.question for r in requirements if r.id in passed),
        fix=tuple(r.question for r in requirements if r.id not in passed),
    )


def _draw(resources: Resources, state: GemsState, runtime: Runtime[GemsContext], base: Attempt | None) -> GemsState:
    if state.get("outcome"):  # a branch before this one gave up
        return GemsState()
    watch, context = Stopwatch(), resources.context(runtime)
    attempts = state["attempts"]
    round_ = attempts[-1].round + 1 if attempts else 1
    edit = None
    if base:
        png = resources.images(context).read(base.image)
        edit = edit_of(base, all_asked(state), Image.open(io.BytesIO(png)))
    requests = [
        ImageRequest(state["draft"], (state["seed"] + (round_ - 1) * context.candidates + k) % (MAX_SEED + 1), edit)
        for k in range(_affordable(context, state["usage"]))
    ]
    if not requests:
        return GemsState(outcome="budget")

    def on_step(at: Step) -> None:
        if runtime.drain_requested and at.step < at.steps:
            # As LangGraph itself does between nodes: the run stands before this node, and can go on from there.
            raise GraphDrained(runtime.drain_reason or "stopped")
        event = {"round": round_, "candidate": at.index, "step": at.step}
        runtime.stream_writer({"event": "step", **event, "steps": at.steps})
        if at.preview is not None:
            runtime.stream_writer({"event": "preview", **event, "jpeg": _base64_jpeg(at.preview)})

    backend, images = resources.generator(context), resources.images(context)
    results = backend.generate(requests, on_step=on_step)
    errors = [r for r in results if isinstance(r, BackendError)]
    if len(errors) == len(results):
        if all(isinstance(error, ContentRefusedError) for error in errors):
            return _refused(state, context, errors[0], watch)
        raise errors[0]
    made = []
    for k, result in enumerate(results):
        if isinstance(result, BackendError):
            continue
        base_hash = base.image.sha256 if base else ""
        ref = images.put(result.image, image_metadata(result.request, backend, edited_from=base_hash))
        made.append(
            Attempt(
                round=round_,
                candidate=k,
                strategy=state["strategy"],
                prompt=result.request.prompt,
                seed=result.request.seed,
                image=ref,
                edited_from=base_hash,
            )
        )
        runtime.stream_writer(
            {
                "event": "image",
                "round": round_,
                "candidate": k,
                "seed": result.request.seed,
                "uri": ref.uri,
                "sha256": ref.sha256,
            }
        )
    notes = [f"generator: {r.note}" for r in results if isinstance(r, GeneratedImage) and r.note]
    best = best_attempt([*attempts, *made])
    return GemsState(
        attempts=[*attempts, *made],
        refused=[draft for draft in state["refused"] if draft != state["draft"]],
        image=best.image if best else None,
        errors=[*(f"generator: image {error}" for error in errors), *notes],
        usage=Usage(images=len(made), seconds=watch.seconds),
    )


def _refused(state: GemsState, context: GemsContext, error: BackendError, watch: Stopwatch) -> GemsState:
    """A refused draft costs a round: the refiner finds other words for it, as long as there are rounds left."""
    refused, attempts = [*state["refused"], state["draft"]], state["attempts"]
    rounds = len(refused) + (attempts[-1].round if attempts else 0)
    update = GemsState(refused=refused, errors=[f"generator: {error}"], usage=Usage(seconds=watch.seconds))
    if rounds >= context.max_rounds:
        update["outcome"] = "rounds" if attempts else "failed"
    return update


def image_metadata(request: ImageRequest, generator: ImageGenerator, *, edited_from: str = "") -> dict[str, str]:
    """The text chunks of an image's PNG: A1111's "parameters", and the same as JSON; no clock, so that bytes repeat."""
    record: dict[str, object] = {
        "prompt": request.prompt,
        "seed": request.seed,
        "model": generator.name,
        "model_hash": generator.fingerprint,
    }
    if request.edit is not None:
        record["edit"] = {"from": edited_from, "keep": request.edit.keep, "fix": request.edit.fix}
    return {
        "parameters": f"{request.prompt}\nSeed: {request.seed}, Model: {generator.name}, "
        f"Model hash: {generator.fingerprint[:10]}, Version: GEMS",
        "gems": json.dumps(record, sort_keys=True),
    }


def without_image(state: GemsState, error: NodeError) -> Goto:
    """A generator that gave up ends the run; what was made before is still the result."""
    return report_failure(state, error, "store_memory", outcome="failed")


def _base64_jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def _affordable(context: GemsContext, usage: Usage) -> int:
    """How many of the round's images the budget still allows."""
    return next(
        (n for n in range(context.candidates, 0, -1) if not context.budget.exhausted(usage, images=n)),
        0,
    )
