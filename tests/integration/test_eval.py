"""``gems eval``: all arms use the same seeds, a report is written, and SIGKILL neither loses nor repeats a prompt."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import forked
import pytest
from chatting import ChatEndpoint, serving
from forked import gems, gems_here
from PIL import Image
from servers.threaded import serving as in_thread
from servers.waiting import wait_until

from gems.bulk.results import ResultsFile
from gems.evals.prompts import fresh_prompts, write_prompts
from gems.files import held_alone

SLOW = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "text_roles.py"


def uses_finished_evaluation(test: Any) -> Any:
    """Mark a test that uses ``finished``, an evaluation that runs once per session."""
    return SLOW(pytest.mark.xdist_group("eval")(test))


def results(out: Path, arm: str) -> list[dict[str, Any]]:
    lines = (out / "arms" / arm / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


ALL = ["grammar", "--n", "4", "--seed", "3", "--images", "2", "--arms", "all", "--orders", "2"]
NAMES = {
    "single",
    "rewrite",
    "best-of-2",
    "plan+best-of-2",
    "rewrite+best-of-2",
    "loop",
    "loop+skills",
    "loop+memory",
    "loop+memory+skills",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "out"
    result = gems("eval", *ALL, "--out", out, "--json", home=out.parent / "home")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((out / "report.json").read_text())
    return out


@uses_finished_evaluation
def test_every_arm_is_measured(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert set(report["arms"]) == NAMES
    for name, arm in report["arms"].items():
        low, high = arm["ci95"]
        assert 0 <= low <= arm["all_correct"] <= high <= 1
        assert arm["seconds_per_prompt"] > 0
        assert arm["worse_shipped_by_own_score"] == 0
        assert 1 <= arm["images_per_prompt"] <= 2, name
        assert (arm["chat_calls_per_prompt"] == 0) == (name == "single")
        assert (arm["tokens_per_prompt"] == 0) == (name == "single")
    assert report["arms"]["best-of-2"]["images_per_prompt"] == 2
    assert {c["better"] for c in report["comparisons"]} <= NAMES
    assert (finished / "report.md").read_text().count("| loop |") >= 4
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ), "the page loads nothing from elsewhere"


@uses_finished_evaluation
def test_arms_share_their_seeds(finished: Path) -> None:
    single, best, loop = ({r["index"]: r for r in results(finished, a)} for a in ("single", "best-of-2", "loop"))
    for i in range(4):
        assert single[i]["attempts"][0]["sha256"] == best[i]["attempts"][0]["sha256"]
        assert [a["seed"] for a in best[i]["attempts"]][: len(loop[i]["attempts"])] == [
            a["seed"] for a in loop[i]["attempts"]
        ]


@uses_finished_evaluation
def test_the_benchmarks_own_scorer_finds_the_images(finished: Path) -> None:
    prompts = [json.loads(line)["prompt"] for line in (finished / "prompts.jsonl").read_text().splitlines()]
    for arm in NAMES:
        paths = json.loads((finished / "arms" / arm / "image_paths.json").read_text())
        assert list(paths) == prompts
        assert all(Path(path).is_file() for path in paths.values())


@uses_finished_evaluation
def test_an_evaluation_that_is_killed_repeatedly_has_the_same_results(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arms = ["--arms", "single,loop,loop+memory"]
    common = ["--n", "4", "--seed", "3", "--images", "2", "--against", "none"]
    args, home = ["eval", "grammar", *common, *arms, "--out"], tmp_path / "home"
    for arm in ("single", "loop", "loop+memory"):
        path = out / "arms" / arm / "results.jsonl"
        with forked.gems_process(*args, out, home=home) as process:
            wait_until(lambda: path.exists() and b"\n" in path.read_bytes(), lambda: f"{arm} has no result")  # noqa: B023
            process.send_signal(signal.SIGKILL)
        with path.open("ab") as file:
            file.write(b'{"index": 3, "pro')
        out = out.rename(tmp_path / f"moved after {arm}")
    result = gems(*args, out, home=home)
    assert result.returncode == 0, result.stderr
    for arm in ("single", "loop", "loop+memory"):
        rows = sorted(results(out, arm), key=lambda row: row["index"])
        assert [row["index"] for row in rows] == list(range(4)), "no prompt is lost or repeated"
        expected = sorted(results(finished, arm), key=lambda row: row["index"])
        assert [row["attempts"][row["best"]]["sha256"] for row in rows] == [
            row["attempts"][row["best"]]["sha256"] for row in expected
        ]
        assert [row["usage"]["images"] for row in rows] == [row["usage"]["images"] for row in expected]


@SLOW
def test_a_report_tells_what_kills_and_stops_have_cost(tmp_path: Path) -> None:
    out, arms = tmp_path / "out", ("single", "loop")
    with serving("image_server.py") as painter:
        options = ("--images", 2, "--generator", f"{painter}/slow/draw", "--scorer", "soft-tifa", "--judge", "pocket")
        command = ("eval", "grammar", "--n", 4, "--arms", ",".join(arms), "--against", "none", *options, "--out", out)

        def drawn() -> int:
            with urllib.request.urlopen(f"{painter}/log") as answer:
                return len(json.load(answer)["seen"])

        for seen in (1, 3, 8, 11):
            with forked.gems_process(*command, home=tmp_path / "home") as process:
                wait_until(lambda: drawn() >= seen, lambda: "too little was asked for")  # noqa: B023
                process.kill()
        result = gems(*command, home=tmp_path / "home")
        assert result.returncode == 0, result.stderr
        requests = drawn()
    figures = json.loads((out / "report.json").read_text())["arms"]
    counted = sum(row["usage"]["images"] for arm in arms for row in results(out, arm))
    lost = {arm: figures[arm].get("images_in_flight_at_a_kill_at_most", 0) for arm in arms}
    assert counted < requests <= counted + sum(lost.values())
    assert 1 <= lost["single"] <= 8
    words = f"up to {lost['single']} more images were in flight at a kill: paid for, and in no figure"
    assert f"single: {words}" in " ".join(result.stderr.split())
    for report in ("report.md", "report.html"):
        assert words in (out / report).read_text()
    again = gems(*command, home=tmp_path / "home")
    assert again.returncode == 0, again.stderr
    assert f"single: {words}" in " ".join(again.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["torn-once", "torn"])
def test_images_that_were_lost_on_their_way_count_for_an_arm_without_a_graph(fault: str, tmp_path: Path) -> None:
    with serving("image_server.py") as painter:
        generator = ("--generator", f"{painter}/{fault}/draw", "--scorer", "soft-tifa", "--judge", "pocket")
        command = ("eval", "grammar", "--n", 2, "--arms", "single", *generator, "--out", tmp_path / "out")
        # The first start fails for good; the second one tries the prompts again.
        for expected in (3, 3) if fault == "torn-once" else (6, 12):
            gems(*command, home=tmp_path / "home")
            with urllib.request.urlopen(f"{painter}/log") as answer:
                requests = len(json.load(answer)["seen"])
            assert requests == expected
            latest_rows = {row["prompt"]: row for row in results(tmp_path / "out", "single")}
            assert sum(row["usage"]["images"] for row in latest_rows.values()) == requests
            record = ResultsFile(tmp_path / "out" / "arms" / "single" / "results.jsonl")
            assert record.usage.images == requests, "what two results of a prompt say counts once"
            figures = json.loads((tmp_path / "out" / "report.json").read_text())["arms"]["single"]
            assert figures["images_per_prompt"] == requests / 2


@pytest.mark.slow
def test_images_that_are_asked_for_again_count_at_a_kill_of_an_arm_without_a_graph(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving("image_server.py") as painter:
        generator = ("--generator", f"{painter}/worn/draw", "--scorer", "soft-tifa", "--judge", "pocket")
        command = ("eval", "grammar", "--n", 2, "--arms", "single", *generator, "--out", out)

        def requests() -> int:
            with urllib.request.urlopen(f"{painter}/log") as answer:
                return len(json.load(answer)["seen"])

        with forked.gems_process(*command, home=tmp_path / "home") as process:
            wait_until(lambda: requests() >= 5, lambda: "too little was asked for")
            process.kill()
        gems(*command, home=tmp_path / "home")
        figures = json.loads((out / "report.json").read_text())["arms"]["single"]
        counted = ResultsFile(out / "arms" / "single" / "results.jsonl").usage.images
        assert requests() <= counted + figures.get("images_in_flight_at_a_kill_at_most", 0)


class _LosesThenIsBusy(BaseHTTPRequestHandler):
    """Sends half an image, then wants a long wait, and is well again once ``healed``."""

    requests: ClassVar[list[str]] = []
    healed = False

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append(self.path)
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
        if self.healed:
            self._send(200, buffer.getvalue())
        elif len(self.requests) == 1:
            self._send(200, buffer.getvalue()[:60])
        else:
            self._send(429, b"", ("Retry-After", "50"))

    def _send(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body))), ("Content-Type", "image/png")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_stopped_try_has_asked_for_counts_when_the_prompt_is_tried_again(
    number: signal.Signals, tmp_path: Path
) -> None:
    handler = type("OneHandler", (_LosesThenIsBusy,), {"requests": []})
    with in_thread(handler) as http:
        generator = ("--generator", f"http://127.0.0.1:{http.server_port}/draw", "--scorer", "soft-tifa")
        command = ("eval", "grammar", "--n", 1, "--arms", "single", *generator, "--out", tmp_path / "out")
        with forked.gems_process(*command, home=tmp_path / "home") as process:
            wait_until(lambda: len(handler.requests) == 2, lambda: "nothing was asked for")
            process.send_signal(number)
            _, messages = process.communicate(timeout=40)
        assert process.returncode == 130, messages
        handler.healed = True
        result = gems(*command, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    [row] = results(tmp_path / "out", "single")
    assert len(handler.requests) == 3
    assert row["usage"]["images"] == 2, "a busy server has drawn nothing"


@pytest.mark.slow
@pytest.mark.parametrize("busy", ["generator", "judge"])
def test_a_stop_does_not_wait_for_a_server_that_fails(busy: str, tmp_path: Path) -> None:
    with serving() as chat, serving("image_server.py") as painter:
        server = ChatEndpoint(chat, "busy-for-long" if busy == "judge" else "fine")
        images = f"{painter}/{'busy-for-long' if busy == 'generator' else 'fine'}/v1"
        command = ("eval", "grammar", "--n", 3, "--arms", "single", "--generator", "openai:painter", "--out", tmp_path)
        judge = ("--judge", "openai:pocket" if busy == "judge" else "pocket")
        variables = {"GEMS_IMAGE_BASE_URL": images, "OPENAI_BASE_URL": str(server.options.base_url)}
        keys = {"GEMS_IMAGE_API_KEY": "x", "OPENAI_API_KEY": "x"}
        with forked.gems_process(*command, *judge, home=tmp_path / "home", **variables, **keys) as process:

            def asked() -> int:
                with urllib.request.urlopen(f"{painter}/log") as answer:
                    return len(json.load(answer)["seen"] if busy == "generator" else server.log)

            wait_until(asked, lambda: "nothing was asked for")
            process.send_signal(signal.SIGINT)
            before = time.monotonic()
            _, messages = process.communicate(timeout=40)
            assert time.monotonic() - before < 15
    assert process.returncode == 130, messages
    assert not (tmp_path / "report.json").exists()
    path = tmp_path / "arms" / "single" / "results.jsonl"
    assert not path.exists() or not path.read_text(), "a prompt that was stopped has not failed"


@SLOW
def test_the_users_own_file_with_soft_tifa(tmp_path: Path) -> None:
    write_prompts(fresh_prompts(2, seed=8), tmp_path / "data.jsonl")
    out = tmp_path / "out"
    args = ["--arms", "single", "--against", "none", "--scorer", "soft-tifa", "--out", str(out), "--json"]
    result = gems("eval", "geneval2", "--data", tmp_path / "data.jsonl", *args, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    arm = json.loads(result.stdout)["arms"]["single"]
    assert 0 < arm["soft_tifa_gm"] <= arm["soft_tifa_am"] <= 1
    assert "curve" not in arm, "only the returned image is judged"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["geneval2", "--data", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["grammar", "--n", "2", "--arms", "lop"], "unknown arm 'lop'"),
        (["grammar", "--n", "2", "--generator", "nope"], "unknown image generator"),
        (["grammar", "--n", "2", "--scorer", "oracle", "--against", "diffusers:x"], "the oracle knows"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, args: list[str], says: str) -> None:
    result = gems_here("eval", *args, "--out", tmp_path / "out", home=tmp_path / "home")
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Whatever the first one does: between two arms and while it scores, no arm is locked."""
    with held_alone(tmp_path / ".lock", ""):
        result = gems("eval", "grammar", "--n", 1, "--arms", "single", "--out", tmp_path, home=tmp_path / "home")
    assert result.returncode == 2
    assert "another process works on the evaluation" in result.stderr
    assert not (tmp_path / "arms").exists()


@uses_finished_evaluation
def test_a_folder_of_another_evaluation_is_refused(finished: Path) -> None:
    result = gems("eval", "grammar", "--n", "5", "--seed", "3", "--out", finished, home=finished.parent / "home")
    assert result.returncode == 2
    assert "holds an evaluation of other prompts or settings" in result.stderr


@SLOW
def test_a_language_model_in_the_text_roles_is_compared_with_one_shot(tmp_path: Path) -> None:
    options = ["--model", "pocket", "--n", "3", "--out", tmp_path / "out"]
    environment = forked.environment(tmp_path / "home", LANGGRAPH_STRICT_MSGPACK="true")
    result = forked.run([sys.executable, SCRIPT, *options], env=environment)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    kinds = {"valid_at_once": 3, "valid_after_a_repair": 0, "valid_in_part": 0}
    assert report["answers"]["planner"] == {"answers": 3, **kinds, "valid": 1.0}
    assert {name: arm["prompts"] for name, arm in report["arms"].items()} == dict.fromkeys(
        ("single", "loop", "loop+memory+skills"), 3
    )
    assert report["loop against single"]["better"] == "loop"
    assert report["loop+memory+skills against loop"]["than"] == "loop"
