"""The pocket pipeline without diffusers makes what the one with diffusers makes, to the last bit."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextModel

from gems.models.pocket import light
from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.weights import GENERATOR, weights_folder

PROMPTS = ("two red cars to the left of a striped cat", "a dog")


@pytest.fixture(scope="module")
def original() -> PocketPipeline:
    pipeline = PocketPipeline.from_pretrained(str(weights_folder(GENERATOR)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pipeline() -> light.PocketPipeline:
    return light.PocketPipeline.from_pretrained(str(weights_folder(GENERATOR)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("steps", "guidance"), [(12, 1.0), (5, 3.0), (1, 1.0)])
def test_it_draws_the_same_images(
    original: PocketPipeline, pipeline: light.PocketPipeline, steps: int, guidance: float
) -> None:
    for seed, prompt in enumerate(PROMPTS):
        settings = {"num_inference_steps": steps, "guidance_scale": guidance}
        [expected] = original(prompt, generator=seeded(seed), **settings).images
        [image] = pipeline(prompt, generator=seeded(seed), **settings).images
        assert image == expected


def test_an_edit_is_the_same(original: PocketPipeline, pipeline: light.PocketPipeline) -> None:
    [base] = pipeline(PROMPTS[0], generator=seeded(3)).images
    edit = {"image": base, "keep": ["Are there exactly two cars in the image?"], "fix": ["Is the cat striped?"]}
    assert (
        pipeline(PROMPTS[0], generator=seeded(4), **edit).images
        == original(PROMPTS[0], generator=seeded(4), **edit).images
    )


def test_words_have_the_states_of_clip_with_and_without_padding(
    original: PocketPipeline, pipeline: light.PocketPipeline
) -> None:
    assert isinstance(original.text_encoder, CLIPTextModel)
    for prompts in ([PROMPTS[0]], list(PROMPTS)):
        (states, mask), (expected, same_mask) = (p._encode(prompts) for p in (pipeline, original))
        assert torch.equal(mask, same_mask)
        assert torch.equal(states, expected)


@pytest.mark.parametrize("steps", [1, 2, 12, 50])
def test_its_schedule_is_that_of_diffusers(
    original: PocketPipeline, pipeline: light.PocketPipeline, steps: int
) -> None:
    for scheduler in (original.scheduler, pipeline.scheduler):
        scheduler.set_timesteps(steps, device="cpu")
    assert torch.equal(pipeline.scheduler.timesteps, original.scheduler.timesteps)
    assert torch.equal(pipeline.scheduler.sigmas, original.scheduler.sigmas)
