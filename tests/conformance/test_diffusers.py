"""Runs the generator conformance suite on real diffusers pipeline classes with tiny random weights."""

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
        # Its scheduler uses an `__array__` call that NumPy 2 deprecates.
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

    def test_images_have_the_requested_size(self, generator: ImageGenerator) -> None:
        [result] = images(generator, [ImageRequest("a car", 1)])
        assert result.image.size == (SIZE, SIZE)

    def test_an_edit_starts_from_its_image(self, generator: ImageGenerator) -> None:
        assert generator.edits
        red, blue = (Edit(Image.new("RGB", (SIZE, SIZE), colour), keep=(), fix=()) for colour in ("red", "blue"))
        requests = [ImageRequest("a car", 1, red), ImageRequest("a car", 1, blue), ImageRequest("a car", 1)]
        reported_steps: list[Step] = []
        results = generator.generate(requests, on_step=reported_steps.append)
        again = images(generator, requests)
        image_bytes = [pixels(r) for r in again]
        assert [r.request for r in results if not isinstance(r, Exception)] == requests
        assert len(set(image_bytes)) == 3
        assert pixels(again[2]) == pixels(images(generator, [ImageRequest("a car", 1)])[0])
        assert max(s.steps for s in reported_steps if s.index == 0) < 3  # the strength setting skips the first steps

    def test_batching_does_not_change_the_images(self, folder: Path, prompts: tuple[str, str]) -> None:
        unbatched = DiffusersGenerator(str(folder), name="one", options=OPTIONS)
        batched = DiffusersGenerator(str(folder), name="three", options=OPTIONS.model_copy(update={"batch_size": 3}))
        requests = [ImageRequest(prompts[k % 2], k) for k in range(4)]
        alone, together = images(unbatched, requests), images(batched, requests)
        for a, b in zip(alone, together, strict=True):
            difference = max(abs(x - y) for x, y in zip(pixels(a), pixels(b), strict=True))
            assert difference <= 2  # out of 255: matrices of other shapes are summed in another order

    def test_previews_come_with_the_steps(self, folder: Path) -> None:
        options = OPTIONS.model_copy(update={"previews": 2, "steps": 4, "batch_size": 2})
        reported_steps: list[Step] = []
        generator = DiffusersGenerator(str(folder), name="x", options=options)
        generator.generate([ImageRequest("a car", 1), ImageRequest("a dog", 2)], on_step=reported_steps.append)
        previewed_steps = [(at.index, at.step) for at in reported_steps if at.preview is not None]
        assert sorted(previewed_steps) == [(0, 2), (0, 4), (1, 2), (1, 4)]
        assert all(at.preview.mode == "RGB" and max(at.preview.size) <= 128 for at in reported_steps if at.preview)
