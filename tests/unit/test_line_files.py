"""Files of JSON lines: what a kill has left of a line is told apart from what people write."""

from __future__ import annotations

from pathlib import Path

import pytest

from gems.json_text import strict_json
from gems.line_files import lines_in, mend_end

ROW = {
    "index": 0,
    "prompt": 'a "café" \\ 🚗\n',
    "score": -1.5e-07,
    "parts": [True, None, {"id": 12}, {}, []],
    "z": False,
}


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(("opening", "content"), [(b"{", ROW), (b'["', ["key", [0.25, 1.0, 1e-05]])])
def test_only_what_a_kill_has_left_of_a_line_is_cut_off(
    opening: bytes, content: object, ascii_only: bool, tmp_path: Path
) -> None:
    path, line = tmp_path / "r.jsonl", strict_json(content, ensure_ascii=ascii_only).encode() + b"\n"
    for end in range(len(line) + 1):
        path.write_bytes(line + line[:end])
        is_whole = end >= len(line) - 1
        assert len(list(lines_in(path, opening))) == 1 + is_whole, line[:end]
        mend_end(path, opening)
        assert path.read_bytes() == line * (1 + is_whole), line[:end]


@pytest.mark.parametrize(
    "end",
    [
        b'{"a": 1, }',
        b'{"a": 1}\r{"a": 2}',
        b'{"a": 1}\r{"a": ',
        b'[{"a": 1}, {"a": 2}]',
        b'[{"a": 1}, {"a',
        b'{"a": NaN',
        b"{'a': 1",
        b'{"a": "\xff',
        b'{"a": "\xe9\xe8',
        b"{\0\0\0",
        b'{"a":' * 5000,
        b'"a"',
        b"# a note",
        b"\xef\xbb\xbf" + b'{"a": ',
    ],
)
def test_what_people_write_stays_and_is_read(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for before in (b"", b'{"a": 0}\n\n'):
        path.write_bytes(before + end)
        *_, last = lines_in(path)
        assert (last.number, last.offset, last.text) == (1 + 2 * bool(before), len(before), end)
        mend_end(path)
        assert path.read_bytes() == before + end + b"\n"
