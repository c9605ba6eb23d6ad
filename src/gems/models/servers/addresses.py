"""The addresses of servers: the one that the user gives, and those that a server gives of itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_plus

import httpx
from pydantic import SecretStr

from gems.errors import InputError
from gems.secrets import is_secret_name, remember_secret

__all__ = [
    "INVALID_PROXY",
    "PROXY_HINT",
    "advice_on_certificates",
    "advice_on_proxies",
    "advice_on_schemes",
    "checked_url",
    "own_address",
]

INVALID_PROXY: Final = (
    "the address of a proxy, or of a host without one, cannot be read; in a password, "
    "write %23 for #, %2F for / and %3F for ?"
)
"""The error about a proxy's address, without the part that was taken for a port: it may be one of a password."""
PROXY_HINT: Final = "; that is the proxy's answer: set HTTPS_PROXY or HTTP_PROXY with name and password, or NO_PROXY"
"""What to do about a proxy that refuses."""
_REFUSAL_OF_PROXY: Final = re.compile(r"4(?!08|25|29)\d\d\b")

_CERTIFICATES: Final = {
    "certificate is not valid for|hostname '[^']*' doesn't match": (
        "; its certificate is of another name: write that name in the address"
    ),
    "certificate has expired|certificate is not yet valid": "; renew it there, or set the clock of this machine",
    "CERTIFICATE_VERIFY_FAILED": "; name the file of the authority that you trust in SSL_CERT_FILE",
    "ALERT_CERTIFICATE_REQUIRED": "; it wants a certificate of its clients: ask it through a proxy that has one",
}
"""What to do about a connection that was refused for a certificate, by patterns of what its error says."""
_NO_TLS: Final = re.compile(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|SSL: HTTP_REQUEST")
"""How OpenSSL says that what answers speaks no TLS."""
_ONLY_TLS: Final = re.compile(
    r"plain HTTP request was sent to (?:an? )?(?:HTTPS|TLS|SSL)|sent an HTTP request to an HTTPS server"
    r"|speaking plain HTTP to an SSL-enabled server",
    re.I,
)
"""How nginx, Go and Apache say that they speak nothing else."""

_NAMES_OF_KEYS: Final = re.compile(r"code|sig|signature|[as]k|app_?id|user|login|pass(?:code)?|license", re.I)
"""Names of parameters that hold a key, beside those that say so."""

_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - nothing is bound to it
"""Names that a server on this machine gives itself."""


def advice_on_certificates(reason: str, *, is_sent: bool) -> str:
    """What to do if a certificate is missing or wrong, or no TLS is spoken, which no other try mends; else empty.

    Args:
        reason: An error of a connection.
        is_sent: Whether the request had been sent: then TLS was spoken, before something else was.
    """
    if _NO_TLS.search(reason) and not is_sent:
        return "; no TLS is spoken there: begin its address, or that of the proxy, with http://"
    return next((advice for pattern, advice in _CERTIFICATES.items() if re.search(pattern, reason)), "")


def advice_on_schemes(answer: str) -> str:
    """What to do if a server says that it has got plain HTTP where it speaks TLS; else empty."""
    return "; begin its address with https://" if _ONLY_TLS.search(answer) else ""


def advice_on_proxies(error: BaseException) -> str:
    """What to do if a proxy refuses to connect to a server, and asking again is of no use; else empty.

    Args:
        error: An error of a connection, from any of the HTTP clients.
    """
    is_of_proxy = any(base.__name__ == "ProxyError" for base in type(error).__mro__)
    return PROXY_HINT if is_of_proxy and _REFUSAL_OF_PROXY.match(str(error)) else ""


def checked_url(base_url: str) -> httpx.URL:
    """The address of a server. Its login, and what is after its question mark, are secrets from now on.

    Raises:
        InputError: The text is not the address of a server.
    """
    address = base_url.rpartition("@")[2].partition("?")[0]  # an error repeats neither a login nor a key
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"{address!r} is not the address of a server: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{address!r} is not the address of a server; give one such as http://localhost:8000/v1")
    for secret in _secrets_in(url):
        remember_secret(SecretStr(secret))
    return url


def _secrets_in(url: httpx.URL) -> Iterator[str]:
    """What a server may repeat of its address that nobody else may know, as it is sent and as it is written.

    A parameter's value is a secret by its name; it may also be a word that stands in many places, such as a model's.
    """
    login = url.userinfo.decode()
    yield from (url.password, login.partition(":")[2])
    yield base64.b64encode(f"{url.username}:{url.password}".encode()).decode()  # as the header of a request has it
    if ":" not in login:  # some take a token in place of a name and password
        yield from (login, url.username)
    query = url.query.decode("ascii", "replace")
    yield from (query, unquote_plus(query))
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if is_secret_name(unquote_plus(name)) or _NAMES_OF_KEYS.fullmatch(name):
            yield from (value, unquote_plus(value), part, unquote_plus(part))


def own_address(base: httpx.URL, url: httpx.URL) -> httpx.URL | None:
    """An address that a server gives of itself, as it is reached from here; None if it is another machine's.

    Behind a gateway, a server knows neither the scheme nor the port that its clients use, nor the parameters of their
    address, such as a token. One with parameters of its own may be signed, and is left as it is.

    Args:
        base: The server's address from here.
        url: The address that it gives.
    """
    is_own = url.host == base.host or (url.host in _THIS_MACHINE and base.host in _THIS_MACHINE)
    if url.scheme not in ("http", "https") or not is_own:
        return None
    own_path = url.raw_path if url.query or not base.query else url.raw_path.partition(b"?")[0] + b"?" + base.query
    return base.copy_with(raw_path=own_path)
