"""What a start of a batch says about its end, on a full disk too."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gems.bulk.latest import note_start, noting_failure, read_latest
from gems.bulk.limits import Limits
from gems.errors import BackendError

_FULL = OSError(errno.ENOSPC, "No space left on device", "results.jsonl")


def test_a_failure_is_noted_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_start(tmp_path, Limits(), 2, None)
    started = read_latest(tmp_path)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("gems.bulk.latest.write_atomically", refuse)
    with pytest.raises(OSError, match="No space"), noting_failure(tmp_path):
        raise _FULL
    latest = read_latest(tmp_path)
    assert latest == started.model_copy(update={"ended": "failed: No space left on device", "is_over": True})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BackendError("the server\nis gone"), "failed: the server is gone"),
        (KeyboardInterrupt(), "stopped"),
        (RuntimeError(), "failed: RuntimeError"),
    ],
)
def test_every_end_has_a_reason(error: BaseException, reason: str, tmp_path: Path) -> None:
    note_start(tmp_path, Limits(), 2, None)
    with pytest.raises(type(error)), noting_failure(tmp_path):
        raise error
    assert read_latest(tmp_path).ended == reason


def test_another_process_start_is_left_alone(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from gems.bulk.latest import *; from gems.bulk.limits import Limits;"
    subprocess.run([sys.executable, "-c", f"{code} note_start(Path({str(tmp_path)!r}), Limits(), 2, None)"], check=True)
    before = (tmp_path / "latest.json").read_bytes()
    with pytest.raises(BackendError), noting_failure(tmp_path):
        raise BackendError("another process works on it")
    assert (tmp_path / "latest.json").read_bytes() == before
