"""What names and errors that others wrote become in the reports of an evaluation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from gems.evals.summary import _matplotlib, _plots, _templates
from gems.printable import printable

HOSTILE = "a|b <img src=http://evil.example/x> [click](javascript:alert) ![](http://evil.example/y) &amp;"


@pytest.mark.parametrize("html", [False, True])
def test_text_of_others_opens_no_column_link_image_or_tag(*, html: bool) -> None:
    text = _templates(html=html).from_string("| {{ skill }} | {{ rate|percent }} |").render(skill=HOSTILE, rate=0.5)
    assert text.endswith(" | 50.0% |")
    assert "<" not in text
    assert "&amp;amp;" in text or "&#38;amp;" in text
    assert html or (text.count("|") == 3 and "[" not in text)


@pytest.mark.parametrize("html", [False, True])
def test_text_of_others_stays_on_its_line_and_commands_no_terminal(*, html: bool) -> None:
    hostile = "a\n\n# heading\r\n| x \x1b]0;t\x07\x9b31m\u202e\u2028`b`\\"
    text = _templates(html=html).from_string("- {{ error }}.").render(error=hostile)
    assert printable(text) == text
    assert html or (text.count("\n") == 0 and "`" not in text and "&#92;." in text)


@pytest.mark.parametrize("command", ["gems eval x.jsonl", "gems eval 'a`b'", "gems eval '``'\n# x", "a\x1b[31m <b>|"])
def test_a_command_is_code_whatever_is_in_it(command: str) -> None:
    text = _templates().from_string("Made by {{ command|code }}.").render(command=command)
    parts = next(token.children for token in MarkdownIt().parse(text) if token.type == "inline") or []
    assert [part.type for part in parts] == ["text", "code_inline", "text"]
    assert parts[1].content == " ".join(printable(command).split())


def test_no_settings_of_matplotlib_change_the_plots() -> None:
    arm = {"all_correct": 0.5, "ci95": (0.4, 0.6), "by_atoms": {"3": {"score": 0.5}}}
    report = {"arms": {"single": arm, "single@a $name$ with \\frac{": arm}}
    mpl = _matplotlib()
    plots = _plots(report)
    with mpl.rc_context({"text.usetex": True, "savefig.dpi": 10**6, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert _plots(report) == plots
        assert mpl.rcParams["text.usetex"]


def test_the_settings_of_matplotlib_in_the_current_folder_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")  # reading it would wait for ever
    code = "import os, gems.evals.summary as s; print(s._matplotlib().__name__, os.getcwd())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["matplotlib", str(tmp_path.resolve())]
