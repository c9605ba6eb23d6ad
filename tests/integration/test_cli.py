"""The command line as a user runs it: separate processes, real files, the pocket models."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import forked
import light_models
import pytest
import strong_models
from chatting import ChatEndpoint, serving
from forked import gems, gems_here
from servers.waiting import wait_until

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
SLOW = pytest.mark.slow
NUMBERS = ("one", "two", "three", "four", "five", "six")
PROMPT = "three blue cars to the left of a striped elephant"


def uses_finished_run(test: Any) -> Any:
    """Mark a test that uses ``finished``, a run that is made once per session."""
    return SLOW(pytest.mark.xdist_group("cli")(test))


def gems_unforked(*arguments: object, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``gems ARGUMENTS`` in a fresh interpreter, for tests of the start itself."""
    command = forked.command_line(*arguments)
    environment = forked.environment(home, **variables)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A finished run: its home, its folder and its --json output."""
    base = tmp_path_factory.mktemp("run")
    result = gems("generate", PROMPT, "--seed", 7, "--out", base / "out", "--json", home=base / "home")
    assert result.returncode in (0, 1), result.stderr
    record = json.loads(result.stdout)
    return base / "home", Path(record["paths"]["folder"]), record


@SLOW
def test_a_run_in_which_the_chat_model_fills_every_field(tmp_path: Path) -> None:
    """From the first call to the report and replay, in processes of their own."""
    home, path = tmp_path / "home", {"PYTHONPATH": str(Path(strong_models.__file__).parent)}
    options = ("--seed", 4, "--no-memory", "--out", tmp_path / "out", *strong_models.OPTIONS)
    result = gems("generate", strong_models.PROMPT, *options, "--json", home=home, **path)
    assert (result.returncode, result.stderr.count("error")) == (0, 0), result.stderr
    record = json.loads(result.stdout)
    assert [a["prompt"] for a in record["attempts"]] == [
        "A quiet empty beach under a cloudy sky with two boats",
        "A quiet empty beach under a cloudy sky, two boats far apart",
    ]
    assert {a["negative_prompt"] for a in record["attempts"]} == {"people"}
    assert {a["flaws"] for a in record["attempts"]} == {strong_models.FLAWS}
    assert [r["question"] for r in record["requirements"]][-1] == "Is the sky cloudy?"
    folder = Path(record["paths"]["folder"])
    report = (folder / "report.html").read_text()
    assert f"Flaws: {strong_models.FLAWS}" in report
    assert "<dt>Negative prompt</dt><dd>people</dd>" in report
    replayed = gems("replay", folder, *strong_models.OPTIONS[2:], home=home, **path)
    assert replayed.returncode == 0, replayed.stderr


@uses_finished_run
def test_a_run_leaves_its_evidence(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, folder, record = finished
    assert record["outcome"] in ("solved", "rounds", "stalled")
    assert json.loads((folder / "run.json").read_text())["run_id"] == record["run_id"]
    for attempt in record["attempts"]:
        data = (folder / attempt["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == attempt["image"]["sha256"]
        assert f"Seed: {attempt['seed']}".encode() in data
    best = record["attempts"][record["best"]]
    assert (folder / "best.png").read_bytes() == (folder / best["file"]).read_bytes()
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert record["skills"]
    assert len(record["models"]["generator"]["fingerprint"]) == 64
    assert record["usage"]["chat_calls"] <= 2 * record["attempts"][-1]["round"] + 2 + 3


@uses_finished_run
def test_replay_makes_the_same_bytes(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, folder, record = finished
    result = gems("replay", folder, "--json", home=home)
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    assert len(results) == len(record["attempts"])
    assert all(r["record"] and r["disk"] for r in results)


@uses_finished_run
def test_replay_detects_a_changed_file(tmp_path: Path, finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    with (tmp_path / "copy" / "round-1-0.png").open("ab") as file:
        file.write(b"x")
    result = gems("replay", tmp_path / "copy", home=home)
    assert result.returncode == 1
    assert "no" in result.stdout


@uses_finished_run
def test_the_same_seed_is_the_same_run(tmp_path: Path, finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, record = finished
    result = gems("generate", PROMPT, "--seed", 7, "--out", tmp_path, "--json", home=tmp_path / "home")
    again = json.loads(result.stdout)
    assert [a["image"]["sha256"] for a in again["attempts"]] == [a["image"]["sha256"] for a in record["attempts"]]


@uses_finished_run
def test_resuming_a_finished_run_spends_nothing(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, folder, record = finished
    shutil.rmtree(folder)
    result = gems("generate", "--resume", folder, "--json", home=home)
    again = json.loads(result.stdout)
    assert again["usage"] == record["usage"]
    assert (folder / "report.html").exists()


@uses_finished_run
def test_a_killed_run_is_resumed_to_the_same_image(tmp_path: Path, finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, record = finished
    home = tmp_path / "home"
    with forked.gems_process("generate", PROMPT, "--seed", 7, "--out", tmp_path / "out", home=home) as process:
        assert process.stderr is not None
        thread = next(line.split()[-1] for line in process.stderr if line.startswith("run "))
        wait_until(lambda: any(home.glob("images/*/*.png")), lambda: "no image was drawn", seconds=120)
        process.send_signal(signal.SIGKILL)
    result = gems("generate", "--resume", thread, "--json", home=home)
    assert result.returncode in (0, 1), result.stderr
    again = json.loads(result.stdout)
    assert [a["image"]["sha256"] for a in again["attempts"]] == [a["image"]["sha256"] for a in record["attempts"]]
    # What was in flight at the kill was asked for, and is asked for again; it depends on when the kill came.
    assert again["usage"]["images"] - again["usage"].get("killed_images", 0) == record["usage"]["images"]
    assert again["usage"]["chat_calls"] - again["usage"].get("killed_calls", 0) == record["usage"]["chat_calls"]


def test_a_run_that_a_server_has_ended_goes_on_with_its_image(tmp_path: Path) -> None:
    home, options = tmp_path / "home", ("--generator-option", "steps=4", "--max-rounds", 1)
    with serving() as chat_server, serving("image_server.py") as painter:
        address = ChatEndpoint(chat_server, "unpaid-verdicts").options.base_url
        models = ("--mllm", "openai:pocket", "--generator", f"{painter}/fine/draw", *options)
        keys = ("--chat-option", "api_key=sk-mine")
        unpaid = gems(
            *("generate", PROMPT, "--seed", 7, *models, "--chat-option", f"base_url={address}", *keys),
            *("--out", tmp_path / "out", "--no-plan", "--no-skills"),
            home=home,
        )
        assert unpaid.returncode == 3, unpaid.stderr
        shown = shlex.split(unpaid.stderr.splitlines()[-1].partition("go on from there: gems ")[2])
        for code in (3, 3, 1):  # the server refuses three times
            again = gems(*shown, *keys, "--json", "--quiet", home=home)
            assert again.returncode == code, again.stderr
        record = json.loads(again.stdout)
        assert "go on from there" not in again.stderr
        assert all(verdict["confidence"] > 0 for verdict in record["attempts"][0]["verdicts"])
        assert (record["usage"]["images"], record["usage"]["chat_calls"], record["errors"]) == (1, 5, [])
        with urlopen(f"{painter}/log") as log:
            assert len(json.load(log)["seen"]) == 1


@pytest.mark.parametrize("command", ["generate", "batch"])
def test_what_the_planner_says_beside_a_refused_decomposer_is_paid_once(command: str, tmp_path: Path) -> None:
    home, out, file = tmp_path / "home", tmp_path / "out", tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\n")
    with serving() as chat_server:
        endpoint = ChatEndpoint(chat_server, "unpaid-requirements")
        models = ("--mllm", "openai:pocket", "--chat-option", f"base_url={endpoint.options.base_url}")
        keys = ("--chat-option", "api_key=sk-mine")
        start = ("generate", PROMPT, "--seed", 7) if command == "generate" else ("batch", "run", file)
        again: list[Any] = [*start, *models, "--max-rounds", 1, "--out", out]
        for code in (3, 3, 3, 0):  # the server refuses three times
            result = gems(*again, *keys, "--json", home=home)
            assert result.returncode == code, result.stderr
            if command == "generate" and code == 3:
                again = shlex.split(result.stderr.splitlines()[-1].partition("go on from there: gems ")[2])
        forms = [entry["form"] for entry in endpoint.log]
    row = json.loads(result.stdout if command == "generate" else (out / "results.jsonl").read_text().splitlines()[-1])
    # The planner reads skills once and plans once.
    assert [forms.count(form) for form in ("Requirements", "Plan")] == [4, 2]
    assert {"counting", "spatial-layout"} <= {*row["skills"]}
    assert row["errors"] == []
    assert (row["usage"]["images"], row["usage"]["chat_calls"]) == (1, len(forms))


def test_a_run_goes_on_by_the_printed_line_with_the_options_of_single_roles(tmp_path: Path) -> None:
    with serving() as chat_server:
        endpoints = {role: ChatEndpoint(chat_server, "fine") for role in ("", "planner.", "verifier.")}
        endpoints["decomposer."] = ChatEndpoint(chat_server, "unpaid-requirements")
        addresses = {f"{role}base_url": str(endpoint.options.base_url) for role, endpoint in endpoints.items()}
        own = {**addresses, "verifier.extra_body": '{"top_k": 3}'}
        options = [part for name, value in own.items() for part in ("--chat-option", f"{name}={value}")]
        keys = ("--chat-option", "api_key=sk-mine")
        start = (
            "generate",
            PROMPT,
            "--seed",
            7,
            "--mllm",
            "openai:pocket",
            "--max-rounds",
            1,
            "--out",
            tmp_path / "out",
        )
        result = gems(*start, *options, *keys, "--no-skills", "--quiet", home=tmp_path / "home")
        assert result.returncode == 3, result.stderr
        shown = shlex.split(result.stderr.splitlines()[-1].partition("go on from there: gems ")[2])
        assert sorted(shown[4::2]) == sorted(options[1::2])
        needed = gems(*shown[:3], *options[2:4], "--chat-option", options[1], *keys, home=tmp_path / "home")
        assert needed.returncode == 2
        missing = ("decomposer.base_url=ADDRESS", "verifier.base_url=ADDRESS", "verifier.extra_body=JSON")
        names = ", ".join(f"--chat-option {name}" for name in missing)
        assert f"was made with {names}, which no record keeps: give them again" in needed.stderr
        for code in (3, 3, 0):
            result = gems(*shown, *keys, home=tmp_path / "home")
            assert result.returncode == code, result.stderr
        forms = {role: [entry["form"] for entry in endpoint.log] for role, endpoint in endpoints.items()}
        bodies = [entry["request"].get("top_k") for entry in endpoints["verifier."].log]
    assert {role: {*names} for role, names in forms.items()} == {
        "": set(),
        "planner.": {"Plan"},
        "decomposer.": {"Requirements"},
        "verifier.": {"Verdicts"},
    }
    assert {*bodies} == {3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, ("generate", "two red cars", "--seed", 7, "--no-memory")),
        (0, ("generate", "two red cars", "--seed", 7, "--no-memory", "--json", "--quiet")),
        (4, ("batch", "run", "prompts.txt", "--total-images", 12)),
        (2, ("batch", "run", "prompts.txt")),
        (0, ("eval", "grammar", "--n", 1, "--arms", "single", "--scorer", "soft-tifa", "--judge", "pocket")),
        (2, ("generate", "")),
        (0, ("graph",)),
    ],
    ids=lambda value: " ".join(map(str, value[:1])) if isinstance(value, tuple) else str(value),
)
def test_the_work_is_done_and_its_exit_code_told_though_the_reader_is_gone(
    code: int, command: tuple[object, ...], tmp_path: Path
) -> None:
    # The batch's last prompt cannot be drawn; a line is printed after every tenth.
    (tmp_path / "prompts.txt").write_text("".join(f"{n} red cars\n" for n in NUMBERS) * 2 + "a blue dragon\n")
    options = ("--out", tmp_path / "out") if command[0] != "graph" else ()
    small = ("--max-rounds", 1, "--no-plan", "--no-skills", "--concurrency", 1) if command[0] == "batch" else ()
    environment = {**os.environ, "GEMS_HOME": str(tmp_path / "home")}
    ends = [os.pipe(), os.pipe()]
    for reader, _ in ends:
        os.close(reader)
    try:
        line = [sys.executable, "-m", "gems", *map(str, (*command, *small, *options))]
        result = subprocess.run(line, stdout=ends[0][1], stderr=ends[1][1], env=environment, cwd=tmp_path, check=False)
    finally:
        for _, writer in ends:
            os.close(writer)
    assert result.returncode == code
    if command[0] == "batch":
        rows = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
        assert len(rows) == (12 if code == 4 else 13)


BAD_INPUT: list[tuple[list[Any], str]] = [
    ([""], "prompt is empty"),
    (["a blue dragon"], "dragon"),
    (["x" * 10_000], "10,000 characters"),
    (["a \x07 cat"], "control characters"),
    (["two bats"], "did you mean cats"),
    (["a cat", "--mllm", "gpt-nonsense"], "gpt-nonsense"),
    (["a cat", "--generator", "stable-confusion"], "stable-confusion"),
    (["a cat", "--embedder", "nonsense:x"], "nonsense"),
    (["a cat", "--budget-images", 0], "--budget-images 0"),
    (["a cat", "--budget-chat-calls", 0], "--budget-chat-calls 0"),
    (["a cat", "--budget-seconds", 0], "--budget-seconds 0"),
    (["a cat", "--max-rounds", 0], "--max-rounds 0"),
    (["a cat", "--seed", -1], "--seed -1"),
    (["a cat", "--user", "e v e"], "--user"),
    (["a cat", "--skills-dir", "/nowhere/at/all"], "no skills folder"),
    (["--resume", "no-such-run"], "no run 'no-such-run'"),
    (["--resume", "../../etc/passwd"], "no run 'passwd'"),
    (["--resume", "no-such-run", "--seed", 3], "leave out --seed"),
    ([], "say what the image should show"),
]


@pytest.mark.parametrize(
    ("command_line", "args", "says"),
    [
        *(pytest.param(gems, args, says, id=f"process-{str(args)[:40]}") for args, says in BAD_INPUT[:2]),
        *(pytest.param(gems_here, args, says, id=str(args)[:40]) for args, says in BAD_INPUT[2:]),
    ],
)
def test_bad_input_gives_a_one_line_error(
    tmp_path: Path, command_line: CommandLine, args: list[Any], says: str
) -> None:
    result = command_line("generate", *args, "--quiet", "--out", tmp_path / "out", home=tmp_path / "home")
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_an_output_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = gems_here("generate", "a cat", "--quiet", "--out", tmp_path / "file", home=tmp_path / "home")
    assert result.returncode == 2
    assert "--out" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_home_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = gems_here("generate", "a cat", "--quiet", "--out", tmp_path / "out", home=tmp_path / "file" / "home")
    assert result.returncode == 2
    assert "GEMS_HOME" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_corrupt_checkpoint_file_is_named_and_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "checkpoints.sqlite").write_bytes(b"not a database at all" * 100)
    result = gems_here("generate", "a cat", "--quiet", "--out", tmp_path / "out", home=home)
    assert result.returncode == 2
    assert "checkpoints.sqlite" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (home / "checkpoints.sqlite").read_bytes().startswith(b"not a database")


@uses_finished_run
def test_a_damaged_page_in_the_checkpoint_file_is_named(
    tmp_path: Path, finished: tuple[Path, Path, dict[str, Any]]
) -> None:
    source, _, record = finished
    home = tmp_path / "home"
    shutil.copytree(source, home)
    with sqlite3.connect(home / "checkpoints.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with (home / "checkpoints.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xde\xad" * 4096 * 4)
    result = gems("generate", "--resume", tmp_path / record["thread"], "--quiet", home=home)
    assert result.returncode == 2, result.stderr
    assert "damaged" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_missing_model_folder_is_a_backend_failure(tmp_path: Path) -> None:
    result = gems_here(
        "generate", "a cat", "--generator", f"diffusers:{tmp_path}/none", "--out", tmp_path / "out", home=tmp_path / "h"
    )
    assert result.returncode == 3
    assert "Traceback" not in result.stderr


@SLOW
def test_doctor_finds_everything_in_place(tmp_path: Path) -> None:
    result = gems("doctor", "--json", home=tmp_path / "home")
    checks = {c["name"]: c for c in json.loads(result.stdout)}
    assert result.returncode == 0, checks
    assert {"torch", "generator", "vision chat model", "embedder"} <= set(checks)


@SLOW
def test_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    result = gems("doctor", "--generator", "nonsense", "--json", home=tmp_path / "home")
    checks = {c["name"]: c for c in json.loads(result.stdout)}
    assert result.returncode == 3
    assert not checks["generator"]["ok"]
    assert "nonsense" in checks["generator"]["detail"]


def test_the_graph_is_drawn_with_its_own_arrows_and_no_others() -> None:
    result = gems("graph", home=Path("/nonexistent"))
    arrows = re.findall(r"(\w+) (?:-->|-\.->) (\w+);", result.stdout)
    assert set(arrows) == {
        ("__start__", "intake"),
        ("intake", "retrieve_memory"),
        ("intake", "decomposer"),
        ("intake", "store_memory"),
        ("retrieve_memory", "planner"),
        ("planner", "skills"),
        ("skills", "planner"),
        ("planner", "cross_check"),
        ("decomposer", "cross_check"),
        ("cross_check", "generator"),
        ("cross_check", "store_memory"),
        ("generator", "verifier"),
        ("generator", "store_memory"),
        ("verifier", "refiner"),
        ("verifier", "store_memory"),
        ("verifier", "review"),
        ("review", "generator"),
        ("review", "verifier"),
        ("review", "refiner"),
        ("review", "store_memory"),
        ("refiner", "generator"),
        ("refiner", "editor"),
        ("refiner", "store_memory"),
        ("editor", "verifier"),
        ("editor", "store_memory"),
        ("store_memory", "__end__"),
    }


@SLOW
def test_help_and_import_load_no_model_library() -> None:
    code = (
        "import sys, gems, gems.cli.main\n"
        "heavy = {'torch', 'langgraph', 'langchain_core', 'transformers', 'diffusers', 'faiss'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import gems as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        package.nonsense  # noqa: B018


@uses_finished_run
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_at_the_next_step_and_can_be_resumed(
    number: signal.Signals, tmp_path: Path, finished: tuple[Path, Path, dict[str, Any]]
) -> None:
    _, _, record = finished
    home = tmp_path / "home"
    command = ("generate", PROMPT, "--seed", 7, "--out", tmp_path / "out", "--json")
    with forked.gems_process(*command, home=home) as process:
        assert process.stderr is not None
        thread = next(line.split()[-1] for line in process.stderr if line.startswith("run "))
        assert any("skills" in line for line in process.stderr)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    stopped_record = json.loads(stdout)
    assert stopped_record["outcome"] == "cancelled"
    assert f"gems generate --resume {thread}" in stderr
    result = gems("generate", "--resume", thread, "--json", home=home)
    again = json.loads(result.stdout)
    assert again["outcome"] == record["outcome"]
    assert again["attempts"][-1]["image"]["sha256"] == record["attempts"][-1]["image"]["sha256"]
    assert again["usage"]["chat_calls"] == record["usage"]["chat_calls"]


@SLOW
def test_a_run_with_bad_input_can_be_corrected_and_resumed(tmp_path: Path) -> None:
    """What only the model itself knows to be bad: words that a pocket model is named for are refused before a run."""
    (tmp_path / "own_models.py").write_text(
        "from gems.models.pocket.chat import PocketChatModel\n\ndef make(options):\n    return PocketChatModel()\n"
    )
    own = {"home": tmp_path / "home", "PYTHONPATH": str(tmp_path)}
    options = ("--mllm", "python:own_models:make")
    again = gems("generate", "a purple dinosaur", *options, "--out", tmp_path / "out", **own)
    assert again.returncode == 2
    [thread] = [path.stem for path in (tmp_path / "home" / "threads").glob("*.json")]
    resume = ("generate", "--resume", tmp_path / "out" / thread, *options)
    still = gems(*resume, **own)
    assert (still.returncode, "unknown word 'dinosaur'" in still.stderr) == (2, True), still.stderr
    path = tmp_path / "home" / "threads" / f"{thread}.json"
    path.write_text(path.read_text().replace("a purple dinosaur", "a purple dog"))
    assert gems(*resume, **own).returncode in (0, 1)


@SLOW
def test_a_word_that_pocket_models_do_not_know_begins_no_run(tmp_path: Path) -> None:
    result = gems("generate", "a purple dinosaur", "--out", tmp_path / "out", home=tmp_path / "home")
    assert (result.returncode, "unknown word 'dinosaur'" in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "home" / "threads").exists()
    assert not (tmp_path / "out").exists()


@SLOW
def test_a_terminal_without_check_marks_gets_question_marks(tmp_path: Path) -> None:
    less = ("--no-memory", "--no-plan", "--max-rounds", 1, "--out", tmp_path / "out", *light_models.OPTIONS)
    variables = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(light_models.__file__).parent)}
    result = gems_unforked("generate", "a cat", *less, home=tmp_path, **variables)
    assert result.returncode in (0, 1), result.stderr
    assert "\n| ? | Is there a cat?" in result.stdout, "a question mark replaces the check mark"


def test_a_missing_skills_folder_creates_no_run(tmp_path: Path) -> None:
    result = gems_here(
        "generate", PROMPT, "--skills-dir", tmp_path / "none", "--out", tmp_path / "out", home=tmp_path / "home"
    )
    assert (result.returncode, len(result.stderr.removeprefix("loading the models\n").strip().splitlines())) == (2, 1)
    assert not (tmp_path / "home" / "threads").exists()


def test_an_evaluation_needs_an_arm(tmp_path: Path) -> None:
    result = gems_here("eval", "grammar", "--n", 3, "--arms", " ,", "--out", tmp_path / "out", home=tmp_path / "home")
    assert (result.returncode, result.stderr.strip().partition(";")[0]) == (2, "error: no arm is named")


@SLOW
def test_reuse_returns_the_image_of_a_solved_run(tmp_path: Path) -> None:
    records = [
        json.loads(gems("generate", "a blue car", *more, "--out", tmp_path, "--json", home=tmp_path).stdout)
        for more in ([], ["--reuse"], [])
    ]
    assert [run["attempts"][0]["strategy"] for run in records] == ["plan", "reuse", "plan"]
    assert records[1]["attempts"][0]["image"] == records[0]["attempts"][-1]["image"]
    assert records[1]["usage"]["chat_calls"] == 0


@SLOW
def test_memory_can_be_kept_in_another_folder(tmp_path: Path) -> None:
    prompts, memory_folder = tmp_path / "prompts.txt", tmp_path / "elsewhere"
    prompts.write_text("two red cars\nthree red cars\n")
    out = tmp_path / "out"
    result = gems("batch", prompts, "--out", out, "--memory", memory_folder, "--concurrency", 1, home=tmp_path / "home")
    assert result.returncode in (0, 1), result.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [len(row["memories"]) for row in rows] == [0, 1]
    generate_result = gems(
        "generate", "four red cars", "--memory", memory_folder, "--out", tmp_path, "--json", home=tmp_path / "home"
    )
    assert len(json.loads(generate_result.stdout)["memories"]) == 2
    assert not (tmp_path / "home" / "memory").exists()
    stats = json.loads(gems("memory", "stats", "--json", home=tmp_path / "home", GEMS_MEMORY=str(memory_folder)).stdout)
    assert stats["users"]["default"]["runs"] == 3
