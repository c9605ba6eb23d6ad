"""Clients that hang up: what is begun for them is cancelled."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from gems.errors import InputError
from gems.serve.hanging_up import begun_for_client


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_run_is_cancelled_whose_client_hangs_up_while_it_begins(is_refused: bool) -> None:
    run, cancelled, may_end = SimpleNamespace(id="run-1", status="queued"), list[Any](), threading.Event()
    service: Any = SimpleNamespace(ledger=SimpleNamespace(run=lambda _: run), cancel=cancelled.append)

    def begin() -> list[Any]:
        assert may_end.wait(10)
        if is_refused:
            raise InputError("no")
        return [run]

    async def hang_up() -> None:
        client = asyncio.create_task(begun_for_client(service, begin))
        await asyncio.sleep(0.05)
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        may_end.set()
        for _ in range(200):
            if cancelled:
                break
            await asyncio.sleep(0.01 if not is_refused else 0.001)

    asyncio.run(hang_up())
    assert cancelled == ([] if is_refused else [run])
