"""What a gateway before an image server answers by itself: an error that says what to do."""

from __future__ import annotations

import httpx
import pytest

from gems.errors import BackendError
from gems.models.servers.openai_images import OpenAIImages
from gems.options import GeneratorOptions


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (403, b"<html><title>Access denied</title></html>", "or the server's own address"),
        (403, b'{"error": "no such key"}', "no such key; set the right key"),
        (403, b'{"error": "Your organization must be verified to use the model x"}', "use the model x$"),
        (403, b'{"detail": "User is locked. Reason: Exhausted balance."}', "balance.; waiting does not help: pay for"),
        (400, b'{"error": {"message": "Billing hard limit has been reached"}}', "reached; waiting does not help: pay"),
        (400, b'{"error": {"message": "Incorrect API key provided: xa***."}}', "answers 400.*; set the right key"),
        (524, b"<html></html>", "give the server's own address"),
    ],
)
def test_an_error_of_a_gateway_says_what_to_do(status: int, body: bytes, says: str) -> None:
    server = OpenAIImages("m", name="openai:m", options=GeneratorOptions(base_url="http://localhost:1/v1"))
    request = httpx.Request("POST", "http://localhost:1/v1/images/generations")
    with pytest.raises(BackendError, match=says):
        server.check_status(httpx.Response(status, request=request), body)
