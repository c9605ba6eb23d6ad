"""JSON that parsers disagree about, or that breaks what comes after them, is refused; null is left out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems.serve.json_bodies import clean_json

HALF_PAIR = b'"\\ud800"'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 60_000, "deep"),
        (b"[" * 33 + b"]" * 33, "deep"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "deep"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b"1" * 5000, "2^53"),
        (b'{"a": -' + b"9" * 17 + b"}", "2^53"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b'{"x": [{"a": null, "a": 1}]}', "'a' twice"),
        (b'{"a": ' + HALF_PAIR + b"}", "surrogate"),
        (b"{" + HALF_PAIR + b": 1}", "surrogate"),
        (HALF_PAIR, "surrogate"),
        (b"{", "not JSON"),
        (b'{"a": 1} {}', "not JSON"),
        (b'{"a": "\x00"}', "not JSON"),
        (b"\x1f\x8b\x08\x00", "UTF-8"),
    ],
)
def test_ambiguous_json_is_refused_in_one_line(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"^the body ") as caught:
        clean_json(body)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_null_is_left_out_at_every_depth() -> None:
    cleaned = json.loads(clean_json(b'{"n": null, "s": {"a": null, "b": 0}, "l": [null, {"c": null}], "e": ""}'))
    assert cleaned == {"s": {"b": 0}, "l": [None, {}], "e": ""}


@settings(deadline=None)
@given(
    st.recursive(
        st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda parts: st.lists(parts) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), parts),
        max_leaves=15,
    )
)
def test_other_json_is_kept(content: object) -> None:
    assert json.loads(clean_json(json.dumps(content).encode())) == content


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,019eE-.nulNatfrsi \\ud8', max_size=60).map(str.encode))
def test_whatever_comes_is_read_or_refused(body: bytes) -> None:
    try:
        cleaned = clean_json(body)
    except ValueError:
        return
    json.loads(cleaned)


def test_one_key_twice_among_thousands_is_found_in_a_moment() -> None:
    names = [f"{number:x}" for number in range(200_000)]
    fields = ",".join(f'"{name}":1' for name in [*names, names[-1]])
    with pytest.raises(ValueError, match=f"the key '{names[-1]}' twice"):
        clean_json(f"{{{fields}}}".encode())
