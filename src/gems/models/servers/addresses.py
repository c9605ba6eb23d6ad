"""The addresses of servers: the one that the user gives, and those that a server gives of itself."""

from __future__ import annotations

import re
from typing import Final

import httpx
from pydantic import SecretStr

from gems.errors import InputError
from gems.secrets import remember_secret

__all__ = ["INVALID_PROXY", "PROXY_HINT", "advice_on_certificates", "advice_on_proxies", "checked_url", "own_address"]

INVALID_PROXY: Final = (
    "the address of a proxy, or of a host without one, cannot be read; in a password, "
    "write %23 for #, %2F for / and %3F for ?"
)
"""The error about a proxy's address, without the part that was taken for a port: it may be one of a password."""
PROXY_HINT: Final = "; that is the proxy's answer: set HTTPS_PROXY or HTTP_PROXY with name and password, or NO_PROXY"
"""What to do about a proxy that refuses."""
_REFUSAL_OF_PROXY: Final = re.compile(r"4(?!08|25|29)\d\d\b")

_CERTIFICATES: Final = {
    "CERTIFICATE_VERIFY_FAILED": "; name the file of the authority that you trust in SSL_CERT_FILE",
    "ALERT_CERTIFICATE_REQUIRED": "; it wants a certificate of its clients: ask it through a proxy that has one",
}
"""What to do about a connection that was refused for a certificate, by what its error says."""

_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - nothing is bound to it
"""Names that a server on this machine gives itself."""


def advice_on_certificates(reason: str) -> str:
    """What to do if a certificate is missing, and asking again is of no use; else empty."""
    return next((advice for name, advice in _CERTIFICATES.items() if name in reason), "")


def advice_on_proxies(error: BaseException) -> str:
    """What to do if a proxy refuses to connect to a server, and asking again is of no use; else empty.

    Args:
        error: An error of a connection, from any of the HTTP clients.
    """
    is_of_proxy = any(base.__name__ == "ProxyError" for base in type(error).__mro__)
    return PROXY_HINT if is_of_proxy and _REFUSAL_OF_PROXY.match(str(error)) else ""


def checked_url(base_url: str) -> httpx.URL:
    """The address of a server. A password in it is a secret from now on.

    Raises:
        InputError: The text is not the address of a server.
    """
    address = base_url.rpartition("@")[2]  # an error does not repeat a login
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"{address!r} is not the address of a server: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{address!r} is not the address of a server; give one such as http://localhost:8000/v1")
    for password in (url.password, url.userinfo.decode().partition(":")[2]):  # as it is sent, and as it is written
        remember_secret(SecretStr(password))
    return url


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
