"""Diffusers pipelines against the conformance suite: the real classes, with tiny random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.generator_suite import GeneratorConformance, images, pixels
from PIL import Image
from tiny_pipelines import SIZE, save_tiny

from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.generators import Edit, ImageGenerator, ImageRequest, Step
from gems.options import GeneratorOptions

CLASSES = (
    "ZImagePipeline",
    "QwenImagePipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    pytest.param(
        "StableDiffusionXLPipeline",
        # Its scheduler asks NumPy 2 for what NumPy 2 frowns upon.
        marks=pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    ),
)
OPTIONS = GeneratorOptions(width=SIZE, height=SIZE, steps=3)


@pytest.fixture(scope="module", params=CLASSES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("pipelines") / request.param)


class TestDiffusers(GeneratorConformance):
    @pytest.fixture
    def generator(self, folder: Path) -> ImageGenerator:
        return DiffusersGenerator(str(folder), name=f"diffusers:{folder.name}", options=OPTIONS)

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "two red cars", "a striped cat to the left of a dog"

    def test_images_have_the_size_that_was_asked_for(self, generator: ImageGenerator) -> None:
        [result] = images(generator, [ImageRequest("a car", 1)])
        assert result.image.size == (SIZE, SIZE)

    def test_an_edit_starts_from_its_image(self, generator: ImageGenerator) -> None:
        assert generator.edits
        red, blue = (Edit(Image.new("RGB", (SIZE, SIZE), colour), keep=(), fix=()) for colour in ("red", "blue"))
        requests = [ImageRequest("a car", 1, red), ImageRequest("a car", 1, blue), ImageRequest("a car", 1)]
        told: list[Step] = []
        results = generator.generate(requests, on_step=told.append)
        again = images(generator, requests)
        made = [pixels(r) for r in again]
        assert [r.request for r in results if not isinstance(r, Exception)] == requests
        assert len(set(made)) == 3
        assert pixels(again[2]) == pixels(images(generator, [ImageRequest("a car", 1)])[0])
        assert max(s.steps for s in told if s.index == 0) < 3  # strength leaves out the first steps

    def test_a_batch_holds_the_images_of_its_seeds(self, folder: Path, prompts: tuple[str, str]) -> None:
        one = DiffusersGenerator(str(folder), name="one", options=OPTIONS)
        three = DiffusersGenerator(str(folder), name="three", options=OPTIONS.model_copy(update={"batch_size": 3}))
        requests = [ImageRequest(prompts[k % 2], k) for k in range(4)]
        alone, together = images(one, requests), images(three, requests)
        for a, b in zip(alone, together, strict=True):
            difference = max(abs(x - y) for x, y in zip(pixels(a), pixels(b), strict=True))
            assert difference <= 2  # of 255: other shapes of matrices are summed in another order

    def test_previews_come_with_the_steps(self, folder: Path) -> None:
        options = OPTIONS.model_copy(update={"previews": 2, "steps": 4, "batch_size": 2})
        told: list[Step] = []
        generator = DiffusersGenerator(str(folder), name="x", options=options)
        generator.generate([ImageRequest("a car", 1), ImageRequest("a dog", 2)], on_step=told.append)
        shown = [(at.index, at.step) for at in told if at.preview is not None]
        assert sorted(shown) == [(0, 2), (0, 4), (1, 2), (1, 4)]
        assert all(at.preview.mode == "RGB" and max(at.preview.size) <= 128 for at in told if at.preview)
