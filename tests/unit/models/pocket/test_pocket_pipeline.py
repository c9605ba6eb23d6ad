from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from gems.evals.oracle import items_of
from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.scene import NUM_SLOTS, SLOT_DIM, decode_slots
from gems.models.pocket.weights import GENERATOR, weights_folder

PROMPT = "two red cars to the left of a striped cat"


@pytest.fixture(scope="module")
def pipeline() -> PocketPipeline:
    pipeline = PocketPipeline.from_pretrained(str(weights_folder(GENERATOR)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline  # type: ignore[no-any-return]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_is_a_diffusion_pipeline(pipeline: PocketPipeline) -> None:
    assert isinstance(pipeline, DiffusionPipeline)
    assert set(pipeline.components) == {"tokenizer", "text_encoder", "transformer", "scheduler", "decoder"}
    [image] = pipeline(PROMPT, generator=seeded(1)).images
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((512, 512), "RGB")


def test_a_saved_pipeline_makes_the_same_images(pipeline: PocketPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(str(tmp_path))
    assert not list(tmp_path.rglob("*.bin"))
    again = PocketPipeline.from_pretrained(str(tmp_path))
    again.set_progress_bar_config(disable=True)
    assert again(PROMPT, generator=seeded(4)).images == pipeline(PROMPT, generator=seeded(4)).images


def test_an_image_depends_on_its_prompt_and_seed_alone(pipeline: PocketPipeline) -> None:
    batch = pipeline([PROMPT, "a dog", PROMPT], generator=[seeded(1), seeded(2), seeded(3)]).images
    assert batch[1] == pipeline("a dog", generator=seeded(2)).images[0]
    assert batch[0] != batch[2]


def test_slots_are_what_the_image_is_drawn_from(pipeline: PocketPipeline) -> None:
    [slots] = pipeline(PROMPT, generator=seeded(9), output_type="slots").images
    assert slots.shape == (NUM_SLOTS, SLOT_DIM)
    assert items_of(pipeline, PROMPT, 9) == decode_slots(slots)


@pytest.mark.slow
def test_other_processes_with_other_threads_make_the_same_slots(pipeline: PocketPipeline) -> None:
    code = (
        "import sys, torch, numpy as np; torch.set_num_threads(int(sys.argv[1]))\n"
        "from gems.models.pocket.pipeline import PocketPipeline\n"
        "from gems.models.pocket.weights import GENERATOR, weights_folder\n"
        "p = PocketPipeline.from_pretrained(str(weights_folder(GENERATOR)))\n"
        "s = p(sys.argv[2], generator=torch.Generator().manual_seed(3), output_type='slots').images[0]\n"
        "sys.stdout.write(s.tobytes().hex())"
    )
    [slots] = pipeline(PROMPT, generator=seeded(3), output_type="slots").images
    other = 2 if torch.get_num_threads() == 1 else 1
    result = forked.run([sys.executable, "-c", code, other, PROMPT], check=True)
    other_slots = np.frombuffer(bytes.fromhex(result.stdout), dtype=np.float32).reshape(slots.shape)
    assert np.allclose(slots, other_slots, atol=2e-3)
    assert decode_slots(slots)[0].object == decode_slots(other_slots)[0].object


def test_guidance_and_steps_matter(pipeline: PocketPipeline) -> None:
    def slots(**settings: Any) -> bytes:
        return bytes(pipeline(PROMPT, generator=seeded(1), output_type="slots", **settings).images[0].tobytes())

    assert len({slots(), slots(guidance_scale=4.0), slots(num_inference_steps=5)}) == 3


def test_callbacks_see_and_can_replace_the_slots(pipeline: PocketPipeline) -> None:
    steps_seen: list[int] = []

    def erase(pipe: PocketPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        steps_seen.append(step)
        return {"slots": -torch.ones_like(tensors["slots"])}

    [slots] = pipeline(
        PROMPT, generator=seeded(1), num_inference_steps=4, callback_on_step_end=erase, output_type="slots"
    ).images
    assert steps_seen == [0, 1, 2, 3]
    assert decode_slots(slots) == []


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a dragon and a cat", "dragon"),
        ("", "1 to 127 words"),
        ("cat " * 200, "1 to 127 words"),
        ("a c☃t", "vocabulary"),
    ],
)
def test_a_prompt_it_cannot_draw_is_refused(pipeline: PocketPipeline, prompt: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pipeline(prompt, generator=seeded(1))


def test_arguments_that_do_not_fit_are_refused(pipeline: PocketPipeline) -> None:
    with pytest.raises(ValueError, match="2 prompts need"):
        pipeline(["a cat", "a dog"], generator=[seeded(1)])
    with pytest.raises(ValueError, match="output_type"):
        pipeline("a cat", output_type="latent")
    with pytest.raises(ValueError, match="latents"):
        pipeline("a cat", callback_on_step_end_tensor_inputs=["latents"])
