"""Runs the generator conformance suite on the generators that GEMS ships."""

from __future__ import annotations

import pytest
from conformance.generator_suite import GeneratorConformance

from gems.errors import InputError
from gems.models.generators import ImageGenerator, ImageRequest
from gems.models.registry import init_image_generator


class TestPocket(GeneratorConformance):
    @pytest.fixture(params=["pocket", "pocket-large"])
    def generator(self, request: pytest.FixtureRequest) -> ImageGenerator:
        return init_image_generator(request.param)

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "two red cars", "a striped cat to the left of a dog"

    def test_an_unknown_word_is_named(self, generator: ImageGenerator) -> None:
        with pytest.raises(InputError, match="dragon"):
            generator.generate([ImageRequest("a red dragon", 1)])


class TestOpen(GeneratorConformance):
    @pytest.fixture
    def generator(self) -> ImageGenerator:
        return init_image_generator("open")

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "two red dragons in the snow", 'an owl next to a sign that says "HELLO", at night'

    def test_a_prompt_that_names_nothing_is_refused(self, generator: ImageGenerator) -> None:
        with pytest.raises(InputError, match="names nothing"):
            generator.generate([ImageRequest("freedom and justice", 1)])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="pocket"):
        init_image_generator("stable-confusion")
