"""What a batch is charged for: servers count what they were really asked for.

Flat colours, which the image server draws, never pass, so every prompt draws as many images as it may.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from chatting import ChatEndpoint, serving
from servers.waiting import wait_until

from gems.evals.prompts import fresh_prompts

pytestmark = pytest.mark.slow

PROMPTS = [prompt.prompt for prompt in fresh_prompts(40, 3)]


class Painter:
    """An image server of its own, which counts."""

    def __init__(self, address: str) -> None:
        self.address = address

    def requests(self) -> list[tuple[str, int]]:
        """The prompt and the seed of each image that was asked for."""
        with urllib.request.urlopen(f"{self.address}/log") as answer:
            return [(entry["request"]["prompt"], entry["request"]["seed"]) for entry in json.load(answer)["seen"]]

    def assert_drew(self, count: int) -> None:
        """Check that it was asked for this many images, and for none twice."""
        requests = self.requests()
        assert len(requests) == count
        assert max(Counter(requests).values(), default=1) == 1


@pytest.fixture
def painter() -> Iterator[Painter]:
    with serving("image_server.py") as address:
        yield Painter(address)


class BatchFolder:
    """A file of prompts and a folder for their results."""

    def __init__(self, folder: Path, painter: Painter, *options: object, behaviour: str = "fine") -> None:
        self.file, self.out, self.home = folder / "p.jsonl", folder / "out", folder / "home"
        self._generator, self._options = f"{painter.address}/{behaviour}/draw", options

    def write(self, entries: Sequence[str | dict[str, Any]]) -> None:
        objects = [{"prompt": entry} if isinstance(entry, str) else entry for entry in entries]
        self.file.write_text("".join(json.dumps(entry) + "\n" for entry in objects))

    def command(self, *more: object) -> list[object]:
        options = ("--no-plan", "--no-skills", "--generator", self._generator, *self._options)
        return ["batch", self.file, "--out", self.out, *options, *more]

    def run(self, *more: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        result = forked.gems(*self.command(*more), home=self.home)
        assert result.returncode == code, result.stderr
        return result

    def summary(self, *more: object, code: int = 0) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(self.run(*more, "--json", code=code).stdout)
        return summary

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(forked.gems("batch", "status", self.out, "--json", home=self.home).stdout)
        return status

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_limit_on_images_holds_from_the_first_prompt_on(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 5, "--concurrency", 32)
    batch.write(PROMPTS)
    summary = batch.summary("--total-images", 3, code=4)
    assert (summary["images"], summary["limit_reached"], summary["cut_short"]) == (3, "images", 1)
    painter.assert_drew(3)
    assert batch.status()["cut_short"] == 1
    [row] = batch.rows()
    assert (row["stopped_by_total"], len(row["attempts"])) == ("images", 3)
    # With more room, the prompt that was cut short goes on where it was, and nothing is drawn twice.
    assert batch.summary("--total-images", 12, code=4)["images"] == 12
    painter.assert_drew(12)
    rows = batch.rows()
    assert [row["outcome"] for row in rows if row["prompt"] == PROMPTS[0]] == ["budget", "rounds"]


def test_a_limit_on_money_holds_from_the_first_prompt_on(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 5, "--candidates", 2, "--price", "image=0.04")
    batch.write(PROMPTS)
    summary = batch.summary("--total-cost", 0.10, "--concurrency", 32, code=4)
    assert (summary["images"], summary["cost"]) == (2, 0.08)
    painter.assert_drew(2)


def test_a_limit_on_calls_holds_and_a_prompt_goes_on_within_one_start(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 3, "--concurrency", 8)
    batch.write(PROMPTS[:6])
    summary = batch.summary("--total-chat-calls", 20, code=4)
    assert sum(row["usage"]["chat_calls"] for row in batch.rows()) <= 20
    assert summary["limit_reached"] == "chat calls"
    final = batch.summary()
    assert final["images"] == 18
    painter.assert_drew(18)


# --- edited files ----------------------------------------------------------------------------------------------------


def test_no_edit_of_the_file_pays_for_a_prompt_again(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 2)
    entries = [{"prompt": text, "id": i} for i, text in enumerate(PROMPTS[:6])] + [{"prompt": "two red cars"}] * 2
    new = {"prompt": "a blue bird", "id": "new"}
    batch.write(entries)
    batch.run()
    painter.assert_drew(16)
    batch.write([new, *entries])
    batch.run()
    painter.assert_drew(18)
    for edited in ([*reversed(entries)], entries, [*entries[3:], *entries[:3]], entries[1:], [new], [new, *entries]):
        batch.write(edited)
        batch.run()
        painter.assert_drew(18)
    result = batch.run()
    assert "belong to no line" not in result.stderr
    batch.write(entries[:2])
    assert "7 results belong to no line of this file" in batch.run().stderr
    assert batch.status()["other_results"] == 7


def _with_last(lines: list[bytes], **fields: Any) -> bytes:
    return b"\n".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | fields).encode()])


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda lines: json.dumps(list(map(json.loads, lines))).encode(), 1),
        (lambda lines: _with_last(lines, score="0.9"), 3),
        (lambda lines: _with_last(lines, best=99), 3),
        (lambda lines: b"\r".join(lines), 1),
        (lambda lines: b"\n".join([*lines, b"# checked"]), 4),
    ],
    ids=["array", "score", "best", "CR", "note"],
)
def test_an_edited_end_of_the_results_is_named_by_every_command_and_never_cut_off(
    edit: Callable[[list[bytes]], bytes], line: int, painter: Painter, tmp_path: Path
) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1)
    batch.write(PROMPTS[:3])
    batch.run()
    file = batch.out / "results.jsonl"
    file.write_bytes(edit(file.read_bytes().splitlines()))
    edited = file.read_bytes()
    commands = (
        batch.command(),
        batch.command("--add-prompts"),
        ["batch", "status", batch.out],
        ["export", batch.out, "--to", "imagefolder", "--all", "--out", tmp_path / "export"],
    )
    for command in commands:
        result = forked.gems(*command, home=batch.home)
        assert result.returncode == 2, result.stderr
        assert f"results.jsonl, line {line} is no result" in " ".join(result.stderr.split())
        assert file.read_bytes() == edited
    painter.assert_drew(3)


def test_a_batch_goes_on_behind_a_last_result_without_a_line_feed(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1)
    batch.write(PROMPTS[:2])
    batch.run()
    file = batch.out / "results.jsonl"
    file.write_bytes(_with_last(file.read_bytes().splitlines(), note="looked at"))
    batch.write(PROMPTS[:3])
    batch.run()
    assert ["note" in row for row in batch.rows()] == [False, True, False]
    painter.assert_drew(3)


def test_a_final_result_stands_wherever_failures_before_it_are_moved(painter: Painter, tmp_path: Path) -> None:
    """As ``sort`` or ``tac`` moves them."""
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1)
    batch.write(PROMPTS[:3])
    before = batch.summary()
    rows = batch.rows()
    failures = [
        {name: row[name] for name in ("index", "line", "id", "prompt", "seed", "copy", "bound_to") if name in row}
        | {"run_id": run_id, "error": "busy", "error_kind": "backend", "usage": {**row["usage"], "images": images}}
        for row in rows
        for run_id, images in ((row["run_id"], 1), (row["run_id"], 0), ("earlier", 0))
    ]
    for lines in ([*failures, *rows], [*rows, *failures], [*reversed(failures), *rows[1:], *failures, rows[0]]):
        (batch.out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = batch.summary()
        assert (summary["finished"], summary["failed"], summary["images"]) == (3, 0, before["images"])
    painter.assert_drew(3)


def test_another_file_for_the_same_folder_is_refused_unless_the_user_says_so(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1)
    batch.write(PROMPTS[:3])
    batch.run()
    batch.write(PROMPTS[3:5])
    message = batch.run(code=2).stderr
    assert "3 results, and none is of a prompt in this file" in message
    assert "--add-prompts" in message
    assert batch.status()["prompts"] == 3  # the first file is still the batch's
    assert "3 results belong to no line" in batch.run("--add-prompts").stderr
    batch.write(PROMPTS[:5])
    batch.run()
    painter.assert_drew(5)


def test_other_contents_of_a_skill_are_another_batch(tmp_path: Path) -> None:
    skill = tmp_path / "skills" / "counting" / "SKILL.md"
    (skill.parent / "references").mkdir(parents=True)
    (skill.parent / "references" / "more.md").write_text("Count twice.")
    skill.write_text("---\nname: counting\ndescription: For numbers of things.\n---\nWrite numbers as words.\n")
    file, out, home = tmp_path / "p.jsonl", tmp_path / "out", tmp_path / "home"
    file.write_text('{"prompt": "two cats"}\n{"prompt": "a dog"}\n')
    command = ("batch", file, "--out", out, "--max-rounds", 1, "--skills-dir", tmp_path / "skills")
    assert forked.gems(*command, home=home).returncode == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {row["bound_to"] for row in rows} == {json.loads((out / "batch.json").read_text())["bound_to"]}
    before = skill.read_text()
    for path, text in ((skill, before + "Always."), (skill.parent / "references" / "more.md", "Count once.")):
        original = path.read_text()
        path.write_text(text)
        result = forked.gems(*command, home=home)
        assert result.returncode == 2
        assert "other skills, or other contents of them (counting)" in result.stderr
        path.write_text(original)
    assert forked.gems(*command, home=home).returncode == 0
    # Settings without the planner read no skills.
    assert forked.gems("batch", file, "--out", tmp_path / "plain", "--no-plan", home=home).returncode == 0
    assert json.loads((tmp_path / "plain" / "batch.json").read_text())["skills"] == {}


@pytest.mark.parametrize(
    "total", [("--total-images", 60), ("--total-cost", 5, "--price", "image=0.04")], ids=["images", "cost"]
)
@pytest.mark.parametrize("rounds", [1, 2])
def test_prompts_whose_requests_fail_go_on_within_a_total(
    rounds: int, total: tuple[object, ...], painter: Painter, tmp_path: Path
) -> None:
    """A request that fails counts as an image: with a share of its rounds' images alone, no prompt could end."""
    batch = BatchFolder(tmp_path, painter, "--max-rounds", rounds, behaviour="shaky")
    batch.write(PROMPTS[:3])
    if rounds == 1:  # the first request uses up all that the prompt may ask for at once
        assert batch.summary(*total, code=3)["to_retry"] > 0
    summary = batch.summary(*total)
    assert (summary["finished"], summary["failed"], summary.get("cut_short")) == (3, 0, None)
    latest = {row["prompt"]: row for row in batch.rows()}
    assert [len(row["attempts"]) for row in latest.values()] == [rounds] * 3
    assert all(attempt["verdicts"] for row in latest.values() for attempt in row["attempts"])
    assert summary["images"] == len(painter.requests()) > 3 * rounds


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_after_the_image_keeps_the_image(painter: Painter, tmp_path: Path) -> None:
    """The verifier's server wants money: the next start verifies the images that are there."""
    with serving() as chat_server:
        chat = ChatEndpoint(chat_server, "unpaid-verdicts")
        options = ("--mllm", "openai:pocket", "--chat-option", f"base_url={chat.options.base_url}")
        batch = BatchFolder(tmp_path, painter, *options, "--chat-option", "api_key=x", "--max-rounds", 1)
        batch.write(PROMPTS[:3])
        summary = batch.summary(code=3)
        assert (summary["failed"], summary["to_retry"], summary["images"]) == (3, 3, 3)
        assert [len(row["attempts"]) for row in batch.rows()] == [1, 1, 1]
        status = batch.status()
        assert (status["to_retry"], status["failed"], status["done"]) == (3, 0, 0)
        assert status["state"] != "finished"
        summary = batch.summary()
        assert (summary["finished"], summary["failed"], summary["images"]) == (3, 0, 3)
        painter.assert_drew(3)
        calls = len(chat.log)
    last = {row["prompt"]: row for row in batch.rows()}
    assert all(verdict[0] == "no" for row in last.values() for verdict in row["attempts"][0]["verdicts"].values())
    assert sum(row["usage"]["chat_calls"] for row in last.values()) == calls


@pytest.mark.parametrize("option", ["--images", "GEMS_IMAGES"])
def test_images_in_another_place_are_not_paid_for_again(option: str, painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 2)
    batch.write(PROMPTS[:2])
    assert batch.summary("--total-images", 3, code=4)["cut_short"] == 1
    elsewhere = tmp_path / "elsewhere"
    if option == "--images":
        result = batch.run(option, elsewhere, code=2)
    else:
        result = forked.gems(*batch.command(), home=batch.home, **{option: str(elsewhere)})
        assert result.returncode == 2
    assert "begun with another --images" in result.stderr
    assert not elsewhere.exists()
    assert batch.summary("--images", batch.out / "images")["finished"] == 2
    painter.assert_drew(4)


def test_status_tells_failures_apart(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1, behaviour="locked")
    batch.write(["a cat", "a blue dragon"])
    batch.run(code=3)
    status = batch.status()
    assert (status["to_retry"], status["failed"], status["finished"]) == (1, 1, 0)
    assert status["state"] == "failed; the same command tries again"
    assert [(fault["step"], fault["prompts"], fault["failed"]) for fault in status["errors"]] == [
        ("generator", 1, 1),
        ("input", 1, 1),
    ]
    assert [prompt for prompt, _ in painter.requests() if "dragon" in prompt] == []
    assert "generator failed: 1 prompt" in forked.gems("batch", "status", batch.out, home=batch.home).stdout


# --- stops and kills -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["broken", "busy-for-long"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_does_not_wait_for_a_server_that_fails(
    number: signal.Signals, behaviour: str, painter: Painter, tmp_path: Path
) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1, "--concurrency", 3, behaviour=behaviour)
    batch.write(PROMPTS[:5])
    with forked.gems_process(*batch.command(), home=batch.home) as process:
        wait_until(lambda: len(painter.requests()) >= 3, lambda: "nothing was asked for")
        process.send_signal(number)
        before = time.monotonic()
        _, messages = process.communicate(timeout=20)
        assert time.monotonic() - before < 15
    assert process.returncode == 130, messages
    assert batch.status()["state"] == "stopped"


def test_a_stop_does_not_wait_for_a_chat_server_that_fails(painter: Painter, tmp_path: Path) -> None:
    with serving() as chat_server:
        chat = ChatEndpoint(chat_server, "busy-for-long")
        options = ("--mllm", "openai:pocket", "--chat-option", f"base_url={chat.options.base_url}")
        batch = BatchFolder(tmp_path, painter, *options, "--chat-option", "api_key=x")
        batch.write(PROMPTS[:3])
        with forked.gems_process(*batch.command(), home=batch.home) as process:
            wait_until(lambda: len(chat.log) >= 3, lambda: "nothing was asked for")
            process.send_signal(signal.SIGTERM)
            before = time.monotonic()
            _, messages = process.communicate(timeout=25)
            assert time.monotonic() - before < 15
    assert process.returncode == 130, messages


def test_calls_that_a_stop_interrupts_are_in_every_total(tmp_path: Path) -> None:
    """The chat server answers about one of two images, and then fails: the step is not done, the answer is paid."""
    with serving() as chat_server, serving("image_server.py") as address:
        chat = ChatEndpoint(chat_server, "verdict-then-down")
        options = ("--mllm", "openai:pocket", "--chat-option", f"base_url={chat.options.base_url}")
        batch = BatchFolder(
            tmp_path, Painter(address), *options, "--chat-option", "api_key=x", "--candidates", 2, "--max-rounds", 1
        )
        batch.write(PROMPTS[:1])

        with forked.gems_process(*batch.command(), home=batch.home) as process:
            wait_until(lambda: [e["form"] for e in chat.log].count("Verdicts") >= 2, lambda: "no verdict was asked for")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=25)
        assert process.returncode == 130
        spent = batch.status()["spent"]
        # One call for the requirements, the one that was answered, and the one that was given up.
        assert (spent["images"], spent["chat_calls"]) == (2, 3)
        summary = batch.summary("--total-chat-calls", 4, code=4)
        assert summary["limit_reached"] == "chat calls"
        assert batch.status()["spent"] == spent


def test_a_grace_period_bounds_a_stop(painter: Painter, tmp_path: Path) -> None:
    """The server hangs with the image, and nothing can be done but leave."""
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1, "--concurrency", 2, behaviour="hung")
    batch.write(PROMPTS[:3])
    with forked.gems_process(*batch.command("--grace", 1), home=batch.home) as process:
        wait_until(lambda: len(painter.requests()) >= 2, lambda: "nothing was asked for")
        process.send_signal(signal.SIGTERM)
        before = time.monotonic()
        process.communicate(timeout=20)
        assert time.monotonic() - before < 10
    assert process.returncode == 130
    status = batch.status()
    assert (status["state"], status["begun"], status["in_flight_at_a_kill_at_most"]) == ("stopped", 2, 2)


def test_images_in_flight_at_a_kill_are_told_and_count_as_spent(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 2, "--concurrency", 4, behaviour="slow")
    batch.write(PROMPTS[:12])
    limit = ("--total-images", 20)
    with forked.gems_process(*batch.command(*limit), home=batch.home) as process:
        wait_until(lambda: len(painter.requests()) >= 6, lambda: "nothing was asked for")
        process.kill()
    status = batch.status()
    assert status["state"].startswith("killed")
    assert status["begun"] >= 1
    known, unknown = status["spent"]["images"], status["in_flight_at_a_kill_at_most"]
    assert known <= len(painter.requests())
    assert 1 <= unknown <= 8
    text = forked.gems("batch", "status", batch.out, home=batch.home).stdout
    assert f"and up to {unknown} more images that were in flight at a kill" in text
    summary = batch.summary(*limit, code=4)
    lost = summary["images_in_flight_at_a_kill_at_most"]
    assert summary["images"] + lost == 20
    assert summary["images"] <= len(painter.requests()) <= 20
    assert batch.status()["in_flight_at_a_kill_at_most"] == lost
    assert batch.summary()["images"] == 24


def account(figures: dict[str, Any]) -> tuple[float, ...]:
    """Images, images that may be lost, chat calls, tokens and money, as the status says."""
    spent = figures["spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    return spent["images"], figures["in_flight_at_a_kill_at_most"], spent["chat_calls"], tokens, spent["cost"]


def test_status_and_the_next_start_give_the_same_account_after_any_kill(painter: Painter, tmp_path: Path) -> None:
    options = ("--max-rounds", 3, "--candidates", 2, "--concurrency", 4, "--price", "image=0.5")
    batch = BatchFolder(tmp_path, painter, *options)
    batch.write(PROMPTS[:6])
    moments = random.Random(7)
    for requests in sorted(moments.sample(range(1, 30), 2)):
        with forked.gems_process(*batch.command(), home=batch.home) as process:
            wait_until(lambda n=requests: len(painter.requests()) >= n, lambda: "nothing was asked for")
            process.kill()
        status, drawn = batch.status(), len(painter.requests())
        images, lost, _, tokens, cost = account(status)
        assert images <= drawn <= images + lost
        assert cost == images * 0.5
        summary = batch.summary("--total-images", 1, code=4)  # there is no room: it only counts
        assert summary["images"] == images
        assert summary.get("images_in_flight_at_a_kill_at_most", 0) == lost
        assert (summary["tokens"], summary.get("cost", 0)) == (tokens, cost)
        assert account(batch.status()) == account(status)
        assert len(painter.requests()) == drawn
    summary = batch.summary()
    assert summary["images"] == account(batch.status())[0] == 36


def test_images_that_are_asked_for_again_count_at_a_kill(painter: Painter, tmp_path: Path) -> None:
    """Each image is asked for up to three times, and each time may be charged; no total is exceeded by them."""
    options = ("--max-rounds", 3, "--candidates", 3, "--concurrency", 1, "--total-images", 7)
    batch = BatchFolder(tmp_path, painter, *options, behaviour="sinking")
    batch.write(PROMPTS[:4])
    with forked.gems_process(*batch.command(), home=batch.home) as process:
        wait_until(lambda: len(painter.requests()) == 7, lambda: "too little was asked for")
        process.kill()
    assert account(batch.status())[:2] == (0, 7)
    batch.run(code=4)
    assert account(batch.status())[:2] == (0, 7)
    assert len(painter.requests()) == 7


def test_half_finished_prompts_without_their_checkpoints_are_told(painter: Painter, tmp_path: Path) -> None:
    batch = BatchFolder(tmp_path, painter, "--max-rounds", 2, "--concurrency", 2, behaviour="slow")
    batch.write(PROMPTS[:2])
    with forked.gems_process(*batch.command(), home=batch.home) as process:
        wait_until(lambda: len(painter.requests()) >= 1, lambda: "nothing was asked for")
        process.kill()
    for file in batch.out.glob("checkpoints.sqlite*"):
        file.unlink()
    assert batch.status()["checkpoints_read"] is False
    text = forked.gems("batch", "status", batch.out, home=batch.home).stdout
    assert "name their database with --checkpoints" in text


WATCH = """
import json, sys
from gems.bulk.watching import read_progress
from pathlib import Path
folder, is_watched = sys.argv[1], [False]
def refuse(event, arguments):
    if not is_watched[0]:
        return
    if event == "open" and str(arguments[0]).startswith(folder) and set(str(arguments[1])) & set("wax+"):
        raise PermissionError(f"writes {arguments[0]}")
    if event in ("fcntl.flock", "fcntl.lockf", "os.remove", "os.rename", "os.mkdir", "os.truncate"):
        raise PermissionError(event)
sys.addaudithook(refuse)
is_watched[0] = True
print(json.dumps(read_progress(Path(folder)).figures()["done"]))
"""


def test_status_locks_and_writes_nothing(painter: Painter, tmp_path: Path) -> None:
    """It works on a folder that is mounted read-only, and never gets in the way of a batch that starts."""
    import sys

    batch = BatchFolder(tmp_path, painter, "--max-rounds", 1)
    batch.write(PROMPTS[:2])
    batch.run()
    result = forked.run([sys.executable, "-c", WATCH, batch.out])
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr
