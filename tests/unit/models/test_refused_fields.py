"""Fields that an image server refuses: an image is asked for without them, and only where nothing was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image
from servers.scripted_images import Answer, answering, draw, encoded, in_json

from gems.errors import BackendError
from gems.models.generators import ASKS, GeneratedImage, is_reproducible

GOOD = in_json({"data": [{"b64_json": encoded(Image.linear_gradient("L"))}]})
SEEDREAM = "doubao-seedream-4"


@contextmanager
def counted(most: int = 9) -> Iterator[list[bool | None]]:
    """What a generator says to the budget in the block, which has room for so many images."""
    asks: list[bool | None] = []

    def ask(is_asked: bool | None) -> bool:
        asks.append(is_asked)
        return asks.count(True) + asks.count(None) <= most

    token = ASKS.set(ask)
    try:
        yield asks
    finally:
        ASKS.reset(token)


@pytest.mark.parametrize(
    "answer",
    [
        in_json({"error": "pipeline failed for seed 7: CUDA error"}, 400),
        in_json({"error": "pipeline failed for seed 7: unsupported data type"}, 400),
        in_json({"error": {"message": "the model doubao-seedream-4 is not supported"}}, 404),
        in_json({"error": "unknown field `foo`, expected one of `seed`, `prompt`"}, 422),
        in_json({"error": {"message": "Unknown parameter: 'n'. Supported parameters: prompt, seed"}}, 400),
        in_json({"error": "no seed of a sunflower is allowed here"}, 401),
        in_json({"error": "pipeline failed for seed 7: CUDA error"}),
        in_json({"error": "Unknown parameter: 'seed'."}),
        in_json({"data": [{"url": "https://images.example.com/seed/response_format.png"}]}),
        in_json({"created": 1, "data": []}),
        (200, b"GIF89a, and no seed", "image/gif"),
    ],
)
def test_an_error_that_only_mentions_a_field_is_paid_once(answer: Answer) -> None:
    with answering(answer, GOOD) as server, counted() as asks:
        result = draw(generator := server.openai(SEEDREAM))
    assert isinstance(result, BackendError)
    assert len(server.posts) == asks.count(True) == 1
    assert is_reproducible(generator)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, {"error": {"message": "Unknown parameter: 'seed'."}}),
        (400, {"error": {"message": "Unrecognized request argument supplied: seed"}}),
        (400, {"error": {"message": "Unsupported parameter: 'seed' is not supported with this model."}}),
        (400, {"error": "Argument not supported on this model: seed"}),
        (400, {"error": {"message": "The parameter `seed` specified in the request is not valid: out of range"}}),
        (400, {"message": "Additional properties are not allowed ('seed' was unexpected)"}),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}),
        (422, {"error": "unknown field `seed`, expected one of `prompt`, `n`"}),
        (422, {"error": "Unrecognized key(s) in object: 'seed', 'response_format'"}),
        (501, {"error": "this engine does not take a seed"}),
    ],
)
def test_a_field_that_a_server_refuses_is_left_out_of_the_next_requests(status: int, words: Any) -> None:
    with answering(in_json(words, status), GOOD) as server, counted() as asks:
        generator = server.openai(SEEDREAM)
        assert isinstance(draw(generator), GeneratedImage)
        assert isinstance(draw(generator, "a bus"), GeneratedImage)
    assert ["seed" in post for post in server.posts] == [True, False, False]
    assert asks == [True, False, True, True], "the refused request is taken back before the next one is asked for"
    assert not is_reproducible(generator)


@pytest.mark.parametrize("field", ["response_format", "negative_prompt"])
def test_the_value_of_a_field_may_be_what_a_server_refuses(field: str) -> None:
    fault = in_json({"detail": [{"loc": ["body", field], "msg": "Input should be 'url'"}]}, 422)
    with answering(fault, GOOD) as server:
        generator = server.openai(guidance_scale=4.0)
        assert isinstance(draw(generator), GeneratedImage)
    assert field not in server.posts[1]
    assert is_reproducible(generator)


def test_a_request_without_a_field_is_not_sent_if_the_budget_has_no_room() -> None:
    with answering(in_json({"error": "Unknown parameter: 'seed'."}, 400), GOOD) as server, counted(most=1):
        result = draw(generator := server.openai())
    assert "Unknown parameter: 'seed'" in str(result)
    assert len(server.posts) == 1
    assert is_reproducible(generator)


def test_a_habit_is_learned_only_if_it_helps() -> None:
    refusal = in_json({"error": "seed is not supported"}, 400)
    with answering(refusal, in_json({"error": "no GPU here"}, 400)) as server:
        result = draw(generator := server.openai())
    assert "no GPU here" in str(result)
    assert ["seed" in post for post in server.posts] == [True, False]
    assert is_reproducible(generator)
