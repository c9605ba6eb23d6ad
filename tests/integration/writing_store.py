"""A script that writes to a store until it is killed, and prints each put after the store acknowledged it."""

from __future__ import annotations

import sys
from pathlib import Path

from gems.memory.store import FaissStore

sys.path.insert(0, str(Path(__file__).parent.parent))
from embedding import PointEmbeddings


def main(folder: str, name: str, first: int, last: int) -> None:
    """Put records ``first`` to ``last`` under this name; delete every seventh one again."""
    store = FaissStore(folder, embedder=PointEmbeddings())
    for n in range(first, last):
        store.put(("w", name), str(n), {"text": f"{name} {n}", "n": n}, index=["text"])
        print(f"put {n}", flush=True)
        if n % 7 == 0:
            store.delete(("w", name), str(n))
            print(f"deleted {n}", flush=True)
        if n % 10 == 0:
            store.search(("w",), query=f"{name} {n}", limit=3)
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
