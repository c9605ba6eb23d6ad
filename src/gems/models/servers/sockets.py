"""Connections that lose nothing of what a server has sent: not when it refuses the rest, nor when it breaks off.

The transports of asyncio, on which httpx builds, drop what has arrived as soon as a write fails. A server that refuses
an upload half-way, as too large or for its key, says so and hangs up: its answer would be lost. Errors of TLS would
reach the caller as they are.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import ssl
from asyncio.staggered import staggered_race
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import zip_longest
from typing import Any, Final, Protocol, TypeVar

import httpcore
import httpx

__all__ = ["keep_what_arrives"]

_T = TypeVar("_T")

_NEXT_ADDRESS: Final = 0.25
"""Seconds after which another address of a host is tried beside the ones before it (RFC 8305)."""
_RECORDS: Final = 2**16
"""Bytes of TLS records that are read at once."""


def keep_what_arrives(client: httpx.AsyncClient) -> None:
    """Let a client that has not been used yet make connections of this kind, also to and through proxies.

    Httpx has no public way to do so that keeps the proxies of the environment.
    """
    inner: Any = client
    for transport in (inner._transport, *inner._mounts.values()):
        if transport is not None:
            transport._pool._network_backend = _Backend()


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        async with _limited(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            connection = await _connected(host, port)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in socket_options or ():
                connection.setsockopt(*option)
        return _Stream(_Socket(connection))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _connected(host: str, port: int) -> socket.socket:
    """A connection to the first of a host's addresses that answers, the kinds of addresses in turn."""
    loop = asyncio.get_running_loop()
    places = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first = [place for place in places if place[0] == places[0][0]]
    other_kinds = [place for place in places if place[0] != places[0][0]]
    in_turn = [place for pair in zip_longest(first, other_kinds) for place in pair if place]

    async def connect(family: int, kind: int, protocol: int, _: str, address: Any) -> socket.socket:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
        except BaseException:
            connection.close()
            raise
        return connection

    connection: socket.socket | None
    connection, _, errors = await staggered_race([partial(connect, *place) for place in in_turn], _NEXT_ADDRESS)
    if connection is None:
        raise next(filter(None, errors), OSError(f"{host} has no address"))
    return connection


@asynccontextmanager
async def _limited(
    seconds: float | None, too_late: Callable[[str], Exception], fault: Callable[[str], Exception]
) -> AsyncIterator[None]:
    """Turn what goes wrong in the block, or lasts too long, into the errors that httpcore knows."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise too_late(str(error)) from error
    except (OSError, UnicodeError) as error:  # of the network or of TLS; of a host's name
        raise fault(str(error)) from error


class _Channel(Protocol):
    @property
    def socket(self) -> socket.socket: ...

    async def receive(self, most: int) -> bytes: ...

    async def send(self, data: bytes) -> None: ...


class _Socket:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    async def receive(self, most: int) -> bytes:
        await asyncio.sleep(0)  # a server that is faster than the loop does not hold it up
        return await asyncio.get_running_loop().sock_recv(self.socket, most)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)


class _Tls:
    """What another channel carries, encrypted."""

    def __init__(self, below: _Channel, context: ssl.SSLContext, host: str | None) -> None:
        self.socket = below.socket
        self._below = below
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._arrived, self._leaving, server_hostname=host)

    async def shake_hands(self) -> None:
        await self._exchange(self.object.do_handshake)

    async def receive(self, most: int) -> bytes:
        try:
            return await self._exchange(lambda: self.object.read(most))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # many servers just hang up
            return b""

    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            piece = left[:_RECORDS]
            left = left[await self._exchange(partial(self.object.write, piece)) :]

    async def _exchange(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._below.receive(_RECORDS):
                    self._arrived.write(data)
                else:
                    self._arrived.write_eof()
            except ssl.SSLError:
                with suppress(OSError):  # the other side is told why, if it still listens
                    await self._flush()
                raise
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if data := self._leaving.read():
            await self._below.send(data)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        async with _limited(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            return await self._channel.receive(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        async with _limited(timeout, httpcore.WriteTimeout, httpcore.WriteError):
            await self._channel.send(buffer)

    async def aclose(self) -> None:
        loop, connection = asyncio.get_running_loop(), self._channel.socket
        if connection.fileno() >= 0:
            loop.remove_reader(connection)
            loop.remove_writer(connection)
            connection.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with _limited(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
                channel = _Tls(self._channel, ssl_context, server_hostname)
                await channel.shake_hands()
        except BaseException:
            await self.aclose()
            raise
        return _Stream(channel)

    def get_extra_info(self, info: str) -> Any:
        connection = self._channel.socket
        if info == "ssl_object":
            return getattr(self._channel, "object", None)
        if info == "socket":
            return connection
        if info == "is_readable":  # where nothing was asked for: the server has hung up
            return connection.fileno() < 0 or _is_readable(connection)
        addresses = {"client_addr": connection.getsockname, "server_addr": connection.getpeername}
        return addresses[info]() if info in addresses else None


def _is_readable(connection: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(0))
