"""How often the comparison of drafts and questions is right, without any chat model: from answers written beforehand.

    python benchmarks/draft_checks.py tests/unit/nodes/wishes.jsonl

Each line of the file is an object: ``wish``; ``prompt`` and ``parts``, a good plan; ``questions``, all of them valid;
and ``bad``, mistakes: ``{"type": "plan", "prompt": ..., "parts": ...}`` or ``{"type": "question", "question": ...,
"words": ...}``. To learn something, take answers that had no part in the making of the checks.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gems.nodes.agreement import forgotten, is_invented, left_out
from gems.nodes.prompt_checks import Part, lost_words
from gems.nodes.question_checks import Mapped, is_contradicted


def main() -> None:
    """Print the counts, and with ``--verbose`` each answer that was judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="+")
    parser.add_argument("--verbose", action="store_true", help="print each answer that was judged wrongly")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    for path in args.file:
        for line in path.read_text(encoding="utf-8").splitlines():
            for count, was_wrong, text in judgements(json.loads(line)):
                counts[count] += 1
                counts[f"{count}, wrong"] += was_wrong
                if was_wrong and args.verbose:
                    print(f"{count}: {text}")
    for count in sorted(name for name in counts if not name.endswith(", wrong")):
        print(f"{count}: {counts[count]}, judged wrongly: {counts[f'{count}, wrong']}")


def judgements(row: Mapping[str, Any]) -> Iterable[tuple[str, bool, str]]:
    """What is judged, whether that was wrong, and the answer in words."""
    wish, questions = row["wish"], _questions(row)
    parts = _parts(row)
    yield "good plans", bool(losses := _losses(row, row, questions)), f"{losses} {wish} -> {row['prompt']}"
    for q in questions:
        yield "valid questions", _is_dropped(q, questions, row), f"{q.question} [{q.words}] {wish}"
    missing = left_out(wish, row["prompt"], parts, questions)
    yield "complete lists of questions", bool(missing), f"{missing} {wish}"
    for bad in row.get("bad", []):
        name = f"bad {bad['type']}s, {bad['fault']}"
        if bad["type"] == "plan":
            yield name, not _losses(row, bad, questions), f"{wish} -> {bad['prompt']}"
        else:
            q = Mapped(wish, bad["question"], bad.get("words", ""))
            yield name, not _is_dropped(q, questions, row), f"{q.question} [{q.words}] {wish}"


def _parts(answer: Mapping[str, Any]) -> list[Part]:
    return [Part(**part) for part in answer.get("parts", [])]


def _questions(row: Mapping[str, Any]) -> list[Mapped]:
    return [Mapped(row["wish"], item["question"], item.get("words", "")) for item in row["questions"]]


def _losses(row: Mapping[str, Any], plan: Mapping[str, Any], questions: list[Mapped]) -> list[str]:
    parts = _parts(plan)
    things = forgotten(row["wish"], plan["prompt"], parts, questions)
    return [*lost_words(row["wish"], plan["prompt"], parts), *(q.question for q in things)]


def _is_dropped(q: Mapped, questions: list[Mapped], row: Mapping[str, Any]) -> bool:
    rest = [other for other in questions if other is not q]
    return is_contradicted(q) or is_invented(q, rest, row["prompt"], _parts(row))


if __name__ == "__main__":
    main()
