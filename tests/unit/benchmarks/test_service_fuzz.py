"""The fuzzer sends what it says, and notices faults and tracebacks."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable

import forked
import pytest
import service_fuzz
from service_fuzz import Exchange, Grammar, Tally, count, memory_summary


@pytest.mark.slow
def test_the_service_withstands_some_requests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service_fuzz, "subprocess", forked.SUBPROCESS)
    monkeypatch.setattr(sys, "argv", ["service_fuzz", "--requests", "400", "--schema-share", "0"])
    service_fuzz.main()
    report = json.loads(capsys.readouterr().out)
    assert report["requests"] >= 400
    assert (report["faults"], report["tracebacks"], report["alive"]) == (0, 0, True)
    assert {"200", "400", "404", "405", "422", "429", "431"} <= report["statuses"].keys()
    assert report["memory_mib"]["end"] > 0


def test_every_route_and_method_is_tried() -> None:
    grammar = Grammar(random.Random(1), {name: name for name in ("poor", "rich", "prometheus")}, 0.01)
    sent = b"".join(piece for _ in range(3000) for piece in grammar.exchange().pieces)
    for part in (b"POST /v1/runs ", b"DELETE /", b"/gems/stream_log", b"chunked", b"NaN", b"sec-fetch-site", b"\xff"):
        assert part in sent


def test_faults_are_counted_with_what_caused_them() -> None:
    tally = Tally()
    answer = b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n\r\n"
    count(Exchange([b"GET / ", b"HTTP/1.1\r\n\r\n"], 2), answer, tally)
    count(Exchange([b"GET /"], 1), b"", tally)
    assert tally.statuses == Counter({"200": 1, "500": 1})
    assert tally.unanswered == 1
    [fault] = tally.faults
    assert "GET / HTTP/1.1" in fault["sent"]


@pytest.mark.parametrize(
    ("second_half", "verdict"),
    [(lambda _: 640.0, "flat"), (lambda share: 640 + 10 * share, "flat"), (lambda share: 640 + 60 * share, "grows")],
)
def test_memory_is_judged_after_warm_up(second_half: Callable[[float], float], verdict: str) -> None:
    first_half = [(sent, 500 + sent / 4) for sent in range(500)]
    samples = [*first_half, *((sent, second_half(sent / 500 - 1)) for sent in range(500, 1001))]
    report = memory_summary(samples, 1000)
    assert (report["ready"], report["after_25%"], report["verdict"]) == (500, pytest.approx(561.25, abs=2), verdict)


def test_memory_of_few_requests_is_told_too() -> None:
    report = memory_summary([(0, 500.0), (3, 505.0)], 3)
    assert (report["ready"], report["end"], report["verdict"]) == (500, 505, "flat")
