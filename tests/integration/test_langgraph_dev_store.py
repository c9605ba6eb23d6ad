"""Under ``langgraph dev`` the graph, Studio and the server's store endpoints share the user's memory."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from langgraph_sdk import get_sync_client
from servers.langgraph_dev import Studio
from shared_servers import needs

from gems.errors import InputError
from gems.graph.app import open_store
from gems.memory.experience import EXPERIENCES
from gems.memory.store import FaissStore
from gems.memory.trajectory import namespace

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langgraph_api") is None,
    reason='needs the LangGraph development server: pip install -e ".[studio]"',
)


@needs("studio")
def test_a_server_remembers_in_the_users_own_memory(studio: Studio) -> None:
    experiences = namespace("ann", EXPERIENCES)
    with get_sync_client(url=studio.url) as client:

        def run(prompt: str) -> Any:
            thread = client.threads.create()["thread_id"]
            context: Any = {"seed": 3, "max_rounds": 2}
            client.runs.wait(thread, "gems", input={"prompt": prompt}, context=context)
            return client.threads.get_state(thread)["values"]

        # Prompts of this test alone: the tests of a server share its user's memory.
        assert "guitar" not in str(run("two metal guitars")["memories"])
        values = run("three metal guitars")
        assert values["memories"][0]["prompt"] == "two metal guitars"
        assert not values.get("errors")

        search_results = client.store.search_items(experiences, query="a metal guitar", limit=2)["items"]
        assert {item["value"]["prompt"] for item in search_results} == {"two metal guitars", "three metal guitars"}
        assert all(item["score"] > 0.3 for item in search_results)

        place = ["notes", "ann"]
        client.store.put_item(place, key="cat", value={"text": "a cat", "n": 1}, index=["text"])
        client.store.put_item(place, key="tax", value={"text": "a tax report", "n": 2}, index=["text"], ttl=60)
        client.store.put_item(place, key="gone", value={"text": "a kitten"}, index=["text"])
        client.store.delete_item(place, key="gone")
        assert client.store.get_item(place, key="cat")["value"] == {"text": "a cat", "n": 1}
        near = client.store.search_items(place, query="a kitten")["items"]
        assert [item["key"] for item in near] == ["cat", "tax"]
        assert [i["key"] for i in client.store.search_items(place, filter={"n": {"$gt": 1}})["items"]] == ["tax"]
        assert place in client.store.list_namespaces(prefix=["notes"])["namespaces"]

    assert "BlockingError" not in studio.log.read_text()
    with closing(FaissStore(studio.home / "memory")) as store:
        stored_items = store.search(experiences, query="two metal guitars")
        assert stored_items[0].value["prompt"] == "two metal guitars"
        assert stored_items[0].score == pytest.approx(1, abs=1e-4)
        assert {"two metal guitars", "three metal guitars"} <= {
            item.value["prompt"] for item in store.search(namespace("ann"), limit=100)
        }
        assert [item.key for item in store.search(("notes",), query="a kitten")] == ["cat", "tax"]


def test_the_event_loop_is_never_blocked(own_home: Path) -> None:
    from blockbuster import BlockBuster

    async def go() -> None:
        async with open_store() as store:
            await store.aput(("a",), "k", {"text": "a cat"}, index=["text"])
            assert await store.aget(("a",), "k") is not None
            [item] = await store.asearch(("a",), query="a kitten")
            assert item.score is not None
            await store.adelete(("a",), "k")
            assert await store.alist_namespaces() == []

    watch = BlockBuster()
    watch.activate()
    try:
        asyncio.run(go())
    finally:
        watch.deactivate()


def test_a_memory_of_another_embedder_is_named(own_home: Path) -> None:
    FaissStore(own_home / "memory", embedder=PointEmbeddings()).close()

    async def go() -> None:
        async with open_store():
            pass

    with pytest.raises(InputError, match="embedder points"):
        asyncio.run(go())
