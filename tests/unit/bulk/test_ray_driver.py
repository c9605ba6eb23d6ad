"""How a batch is divided among the workers of a Ray cluster."""

from __future__ import annotations

import pytest

from gems.bulk.ray_driver import _block_count, _divide


@pytest.mark.parametrize(
    ("concurrency", "max_workers", "workers", "prompts_per_worker"),
    [(1, 8, 1, 1), (8, 1, 1, 8), (8, 3, 3, 3), (9, 8, 5, 2), (64, 16, 16, 4), (3, 100, 3, 1)],
)
def test_workers_hold_all_prompts_in_flight_and_none_is_idle(
    concurrency: int, max_workers: int, workers: int, prompts_per_worker: int
) -> None:
    assert _divide(concurrency, max_workers) == (workers, prompts_per_worker)
    assert (workers - 1) * prompts_per_worker < concurrency <= workers * prompts_per_worker


@pytest.mark.parametrize(
    ("prompts", "concurrency", "blocks"), [(1, 4, 1), (15, 4, 15), (33, 4, 17), (256, 4, 32), (10_000, 16, 1250)]
)
def test_blocks_are_small_while_prompts_are_few(prompts: int, concurrency: int, blocks: int) -> None:
    assert _block_count(prompts, concurrency) == blocks
