"""Files that appear complete or not at all, and what killed processes leave of them."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from gems.errors import InputError
from gems.files import append_whole, atomic_replacement, held_alone, write_atomically
from gems.memory.image_store import ImageStore

_KILLED = """
import os, signal, sys
from pathlib import Path
from gems.files import append_whole, atomic_replacement
with atomic_replacement(Path(sys.argv[1])) as draft:
    draft.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _abandon(path: Path) -> Path:
    """Kill a process that writes a file; returns its draft."""
    before = set(path.parent.iterdir())
    subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    [draft] = set(path.parent.iterdir()) - before
    return draft


def test_the_drafts_of_killed_processes_go_at_the_next_start(tmp_path: Path) -> None:
    draft = _abandon(tmp_path / "index.parquet")
    write_atomically(tmp_path / "latest.json", b"whole")
    assert not draft.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 2
    (tmp_path / f".b.{token}.gems-draft").mkdir()
    (tmp_path / "kept").write_text("x")
    (tmp_path / f".c.{token}.gems-draft").symlink_to(tmp_path / "kept")
    for name in (f".notes.txt.{token}", f"notes.{token}.gems-draft", ".notes.gems-draft", f".{token}"):
        (tmp_path / name).write_text("the user's")
    with (tmp_path / f".a.{token}.gems-draft").open("w") as in_use:
        fcntl.flock(in_use, fcntl.LOCK_EX)
        before = {path.name for path in tmp_path.iterdir()}
        write_atomically(tmp_path / "new", b"")
    assert {path.name for path in tmp_path.iterdir()} == before | {"new"}


def test_a_draft_that_is_being_written_is_left_to_its_process(tmp_path: Path) -> None:
    with atomic_replacement(tmp_path / "file") as draft:
        draft.write_bytes(b"first")
        others = [
            subprocess.Popen(
                [sys.executable, "-c", _KILLED.replace("os.kill", "print"), str(tmp_path / f"{i}")],
                stdout=subprocess.DEVNULL,
            )
            for i in range(2)
        ]
        assert [other.wait() for other in others] == [0, 0]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "file": b"first",
        "0": b"half",
        "1": b"half",
    }


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    def write(content: bytes) -> None:
        for _ in range(20):
            write_atomically(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=(bytes([i]) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path / "file").read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_not_overwritten_unless_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError), atomic_replacement(tmp_path / "file", overwrite=False) as draft:
        draft.write_text("yours")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_line_is_appended_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_whole(path, b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*lines\.jsonl"):
            append_whole(path, b"x" * 30 + b"\n", flush=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_whole(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_nothing_is_appended_through_what_was_put_in_a_files_place(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "results.jsonl"
    other.write_bytes(b"not ours")
    path.symlink_to(other)
    with pytest.raises(OSError, match=r"results\.jsonl"):
        append_whole(path, b"ours\n")
    assert other.read_bytes() == b"not ours"
    path.unlink()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="is not a file"):
            append_whole(path, b"ours\n")
    finally:
        os.close(reader)


def test_the_drafts_of_images_go_too(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    name = ImageStore(tmp_path / "other").put(image, {}).sha256
    path = tmp_path / "images" / name[:2] / f"{name}.png"
    path.parent.mkdir(parents=True)
    draft = _abandon(path)
    ImageStore(tmp_path / "images").put(image, {})
    assert path.exists()
    assert not draft.exists()


def test_a_lock_that_cannot_be_held_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")  # some network file systems

    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"cannot lock .*link"), held_alone(tmp_path / "link", "another process"):
        pass
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match="No locks available"), held_alone(tmp_path / "lock", "another process"):
        pass
