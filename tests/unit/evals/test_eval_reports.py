"""What names and errors that others wrote become in the reports of an evaluation."""

from __future__ import annotations

import pytest

from gems.evals.summary import _templates

HOSTILE = "a|b <img src=http://evil.example/x> [click](javascript:alert) ![](http://evil.example/y) &amp;"


@pytest.mark.parametrize("html", [False, True])
def test_text_of_others_opens_no_column_link_image_or_tag(*, html: bool) -> None:
    text = _templates(html=html).from_string("| {{ skill }} | {{ rate|percent }} |").render(skill=HOSTILE, rate=0.5)
    assert text.endswith(" | 50.0% |")
    assert "<" not in text
    assert "&amp;amp;" in text or "&#38;amp;" in text
    assert html or (text.count("|") == 3 and "[" not in text)
