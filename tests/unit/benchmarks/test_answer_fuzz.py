"""Whole runs against servers whose answers are almost right; the benchmark makes many more of them."""

from __future__ import annotations

import answer_fuzz
import pytest


@pytest.mark.slow
def test_nothing_that_can_be_read_is_lost_and_nothing_is_made_up() -> None:
    report = answer_fuzz.measure(30, seed=3)
    assert report["is_sound"], report
    assert report["chat_answers"] >= 30
    assert report["image_answers"] >= 30
