"""Secrets are replaced by a placeholder in every text that GEMS prints or saves."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from pydantic import SecretStr

from gems.errors import InputError
from gems.models.servers.addresses import checked_url
from gems.secrets import conceal, is_secret_name, remember_secret


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "GEMS_IMAGE_API_KEY", "HF_TOKEN", "X_APIKEY", "db_password", "KEY", "DB_PWD"]
)
def test_keys_in_the_environment_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "wrong key canary-11aa: Bearer canary-11aa"
    assert conceal(message) == message
    monkeypatch.setenv(name, " canary-11aa\r\n")
    assert conceal(message) == "wrong key [key]: Bearer [key]"


@pytest.mark.parametrize("name", ["MONKEY", "KEYBOARD_LAYOUT", "TOKENIZERS_PARALLELISM", "PWD"])
def test_other_variables_are_not_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary-22bb")
    assert conceal("say canary-22bb") == "say canary-22bb"


SECRET_NAMES = (
    "apiKey openai-api-key Authorization X-Auth-Token clientSecret AWSSecretAccessKey api_key_2 passwd userpassword "
    "passPhrase credentials api.key Set-Cookie SECRETS privateKey"
)


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_a_secret_is_known_by_its_name_in_any_style(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "progressToken", "pageToken", "feedback_keys", "primary-key"])
def test_what_is_called_alike_is_no_secret(name: str) -> None:
    assert not is_secret_name(name)


def test_a_key_that_starts_with_another_key_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "canary-33")
    monkeypatch.setenv("B_KEY", "canary-33-longer")
    assert conceal("canary-33-longer, canary-33") == "[key], [key]"


def test_keys_from_options_are_hidden_unless_they_are_too_short() -> None:
    remember_secret(SecretStr("canary-44dd\n"))
    remember_secret(SecretStr("none"))
    remember_secret(None)
    assert conceal("canary-44dd, or none") == "[key], or none"


ODD_KEY = 'sk+live/ab"cdef=12345'


@pytest.mark.parametrize(
    "form",
    [
        quote(ODD_KEY),
        quote(ODD_KEY, safe=""),
        quote_plus(ODD_KEY),
        quote(ODD_KEY, safe="").lower(),
        quote(quote(ODD_KEY, safe="")),
        json.dumps(ODD_KEY)[1:-1],
        base64.b64encode(ODD_KEY.encode()).decode(),
        base64.b64encode(ODD_KEY.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(ODD_KEY.encode()).decode(),
    ],
)
def test_a_key_that_a_server_repeats_in_another_form_is_hidden(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_IMAGE_API_KEY", ODD_KEY)
    assert conceal(f"answers 400: bad token {form}, sorry") == "answers 400: bad token [key], sorry"


@pytest.mark.parametrize("before", ["", "u", "ab", "user:", "key=value&"])
@pytest.mark.parametrize("after", ["", ":", "&x"])
def test_a_key_within_base64_is_hidden_but_for_its_ends(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMS_IMAGE_API_KEY", ODD_KEY)
    encoded = base64.b64encode(f"{before}{ODD_KEY}{after}".encode()).decode()
    hidden = conceal(encoded)
    assert "[key]" in hidden
    assert len(hidden) - len("[key]") <= 4 * (len(before) + len(after)) / 3 + 8


def test_a_login_in_an_address_is_hidden() -> None:
    checked_url("http://ann:canary%2F55ee@gpu:8000/v1")
    assert conceal("canary/55ee, canary%2F55ee") == "[key], [key]"
    for address in ("ftp://ann:canary-66ff@gpu", "http://ann:canary-66ff@gpu:port/v1"):
        with pytest.raises(InputError, match="is not the address of a server") as caught:
            checked_url(address)
        assert "canary-66ff" not in str(caught.value)
