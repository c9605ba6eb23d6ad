"""The contract of every image generator. A backend's tests subclass this and provide ``generator`` and ``prompts``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from gems.models.generators import GeneratedImage, ImageGenerator, ImageRequest, Step


class GeneratorConformance:
    """Subclass it with two fixtures: ``generator`` and ``prompts`` (two prompts that the backend can draw)."""

    @pytest.fixture
    def generator(self) -> ImageGenerator:
        raise NotImplementedError("a subclass must provide its generator")

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        raise NotImplementedError("a subclass must provide two prompts")

    def test_it_follows_the_protocol(self, generator: ImageGenerator) -> None:
        assert isinstance(generator, ImageGenerator)
        assert generator.name
        assert generator.fingerprint == generator.fingerprint != ""

    def test_no_requests_give_no_images(self, generator: ImageGenerator) -> None:
        assert generator.generate([]) == []

    def test_one_result_per_request_in_order(self, generator: ImageGenerator, prompts: tuple[str, str]) -> None:
        requests = [ImageRequest(prompts[0], 1), ImageRequest(prompts[1], 2), ImageRequest(prompts[0], 3)]
        assert [r.request for r in images(generator, requests)] == requests

    def test_a_seed_is_honoured(self, generator: ImageGenerator, prompts: tuple[str, str]) -> None:
        first, again, other = (pixels(images(generator, [ImageRequest(prompts[0], seed)])[0]) for seed in (5, 5, 6))
        assert first == again
        assert first != other

    def test_an_image_does_not_depend_on_its_batch(self, generator: ImageGenerator, prompts: tuple[str, str]) -> None:
        target = ImageRequest(prompts[1], 9)
        batch = images(generator, [ImageRequest(prompts[0], 1), target, ImageRequest(prompts[0], 2)])
        assert pixels(batch[1]) == pixels(images(generator, [target])[0])

    def test_steps_are_reported_in_order(self, generator: ImageGenerator, prompts: tuple[str, str]) -> None:
        reported_steps: list[Step] = []
        generator.generate([ImageRequest(p, 1) for p in prompts], on_step=reported_steps.append)
        for index in range(2):
            steps = [(at.step, at.steps) for at in reported_steps if at.index == index]
            assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
            assert steps

    def test_threads_do_not_disturb_each_other(self, generator: ImageGenerator, prompts: tuple[str, str]) -> None:
        requests = [ImageRequest(prompts[i % 2], i) for i in range(6)]
        alone = [pixels(images(generator, [r])[0]) for r in requests]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda r: pixels(images(generator, [r])[0]), requests))
        assert together == alone


def images(generator: ImageGenerator, requests: list[ImageRequest]) -> list[GeneratedImage]:
    results = generator.generate(requests)
    assert all(isinstance(r, GeneratedImage) for r in results), results
    return [r for r in results if isinstance(r, GeneratedImage)]


def pixels(result: GeneratedImage) -> bytes:
    return result.image.convert("RGB").tobytes()
