"""What a batch promises, as its user sees it: through the command line and the files that it writes."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import forked
import pytest
from chatting import ChatEndpoint, serving
from servers.waiting import wait_until

from gems.bulk import export, latest, results, watching
from gems.errors import InputError

pytestmark = pytest.mark.slow

PROMPTS = ["a cat", "two dogs", "three red cars", "four green birds"]


def write(file: Path, entries: list[Any]) -> Path:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def status(folder: Path, home: Path) -> Any:
    result = forked.gems("batch", "status", folder, "--json", home=home)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def painter() -> Iterator[str]:
    """An image server of this test's own."""
    with serving("image_server.py") as address:
        yield address


def drawn(painter: str) -> int:
    with urlopen(f"{painter}/log") as answer:
        return len(json.load(answer)["seen"])


def drawing(painter: str, behaviour: str = "fine") -> tuple[object, ...]:
    return ("--no-plan", "--no-skills", "--generator", f"{painter}/{behaviour}/draw")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished batch, whose prompts have ids of several types."""
    base = tmp_path_factory.mktemp("finished")
    entries = [{"prompt": text, "id": id_} for text, id_ in (("two red cars", "a"), ("a dog", 7), ("a cat", 2.5))]
    file = write(base / "p.jsonl", entries)
    result = forked.gems("batch", file, "--out", base / "out", "--no-plan", home=base / "home")
    assert result.returncode == 0, result.stderr
    return base / "out"


def test_an_image_is_kept_when_the_verifier_fails(painter: str, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": text} for text in PROMPTS[:3]])
    with serving() as chat_server:
        chat = ChatEndpoint(chat_server, "unpaid-verdicts")
        options = ("--mllm", "openai:pocket", "--chat-option", f"base_url={chat.options.base_url}")
        command = ["batch", file, "--out", tmp_path / "out", *options, "--chat-option", "api_key=x"]
        command += ["--max-rounds", 1, *drawing(painter)]
        assert forked.gems(*command, home=tmp_path / "home").returncode == 3
        assert drawn(painter) == 3
        assert forked.gems(*command, home=tmp_path / "home").returncode == 0
    assert drawn(painter) == 3, "the next start goes on with the images that are there"


def test_a_batch_whose_prompts_all_failed_is_not_called_finished(painter: str, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": text} for text in PROMPTS])
    command = ("batch", file, "--out", tmp_path / "out", "--max-rounds", 1, *drawing(painter, "locked"))
    assert forked.gems(*command, home=tmp_path / "home").returncode == 3
    assert status(tmp_path / "out", tmp_path / "home")["state"] != "finished"
    text = forked.gems("batch", "status", tmp_path / "out", home=tmp_path / "home").stdout
    assert "tries again" in text


def test_what_was_in_flight_at_a_kill_is_told(painter: str, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": text} for text in PROMPTS])
    options = ("--max-rounds", 2, "--concurrency", 4, *drawing(painter, "slow"))
    with forked.gems_process("batch", file, "--out", tmp_path / "out", *options, home=tmp_path / "home") as process:
        wait_until(lambda: drawn(painter) >= 3, lambda: "nothing was asked for")
        process.kill()
    text = forked.gems("batch", "status", tmp_path / "out", home=tmp_path / "home").stdout
    assert "more images that were in flight at a kill" in text


WATCHED = """
import sys
from gems.cli.main import app
folder = sys.argv[1]
def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder) and set(str(arguments[1])) & set("wax+"):
        raise OSError(30, "Read-only file system", arguments[0])
    if event in ("fcntl.flock", "fcntl.lockf"):
        raise OSError(30, "it takes a lock")
sys.addaudithook(refuse)
app(["batch", "status", folder, "--json"])
"""


def test_status_needs_no_lock_and_no_right_to_write(finished: Path) -> None:
    result = forked.run([sys.executable, "-c", WATCHED, finished])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["prompts"] == 3


@pytest.mark.parametrize("change", [{"best": 99}, {"usage": "x"}, {"attempts": 7}, {"index": "one"}])
def test_an_edited_result_is_told_in_one_line(finished: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    first, *others = (folder / "results.jsonl").read_text().splitlines()
    write(folder / "results.jsonl", [{**json.loads(first), **change}, *map(json.loads, others)])
    for command in (
        ("batch", "status", folder),
        ("batch", folder.parent / "p.jsonl", "--out", folder, "--no-plan"),
        ("export", folder, "--to", "imagefolder", "--all", "--out", tmp_path / "e"),
    ):
        (folder.parent / "p.jsonl").write_text((finished.parent / "p.jsonl").read_text())
        result = forked.gems(*command, home=tmp_path / "home")
        assert "Traceback" not in result.stderr, command
        assert result.returncode in (0, 2), result.stderr
        assert len(result.stderr.strip().splitlines()) <= 3


def test_an_export_leaves_the_files_of_others(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ("export", finished, "--to", "imagefolder", "--all", "--out", out)
    assert forked.gems(*command, home=tmp_path / "home").returncode == 0
    own = [out / "notes.txt", out / "train" / "mine.txt", out / "kept" / "labels.csv"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    forked.gems(*command, home=tmp_path / "home")
    assert [path.exists() for path in own] == [True] * 3


def test_the_ids_of_an_export_are_text(finished: Path, tmp_path: Path) -> None:
    command = ("export", finished, "--to", "webdataset", "--all", "--out", tmp_path / "w")
    assert forked.gems(*command, home=tmp_path / "home").returncode == 0
    with tarfile.open(next((tmp_path / "w").rglob("*.tar"))) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".json")]
        ids = [json.load(file)["id"] for file in files if file]
    assert sorted(ids) == ["2.5", "7", "a"]


def test_a_start_ends_before_another_one_may_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index, what is left and how the start ended are written while the folder is its own: none of a later start is
    overwritten."""
    out, refusals = tmp_path / "out", list[str]()
    real_index, real_end = export.write_index, latest.note_end

    def try_to_begin() -> None:
        with pytest.raises(InputError) as error, results.locked(out):
            pass
        refusals.append(str(error.value))

    def write_index(*arguments: Any) -> Path:
        try_to_begin()
        return real_index(*arguments)

    def note_end(*arguments: Any) -> None:
        try_to_begin()
        real_end(*arguments)

    monkeypatch.setattr(export, "write_index", write_index)
    monkeypatch.setattr(latest, "note_end", note_end)
    file = write(tmp_path / "p.jsonl", [{"prompt": f"a cat {i}"} for i in range(6)])
    command = ("batch", file, "--out", out, "--no-plan", "--max-rounds", 1, "--quiet")
    result = forked.gems_here(*command, "--dry-run", "--sample", 5, "--concurrency", 1, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    assert len(refusals) == 2
    assert all("another process works on" in refusal for refusal in refusals)
    # A dry run has ended, too: nothing was killed.
    assert watching.read_progress(out).state == "not finished"
