"""Scores of images: exact ones by the oracle, or Soft-TIFA by any chat model that gives log-probabilities.

A scorer turns one attempt into one number in [0, 1] per question of its prompt, in the benchmark's order. From those
follow the all-correct rate (every number at least one half), Soft-TIFA AM (their arithmetic mean) and GM (their
geometric mean), as GenEval 2 defines them (arXiv 2512.16853). Nothing is rounded on the way: a rounded probability can
turn a small geometric mean into 0.
"""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from gems.authority import NO_AUTHORITY, Authority
from gems.bulk.results import AttemptFields
from gems.errors import BackendError, InputError
from gems.evals.oracle import check, items_of, kind_of
from gems.evals.prompts import EvalPrompt, Vqa
from gems.files import append_whole
from gems.json_text import parse_json, parse_model, strict_json
from gems.line_files import lines_in, mend_end
from gems.memory.image_store import ImageStore, decode_png, read_from, read_metadata, stores_beside
from gems.models.local_weights import without_bars
from gems.models.pocket.grammar import parse_prompt
from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.scene import SceneSpec
from gems.models.pocket.weights import weights_folder
from gems.models.registry import POCKET, init_image_generator, model_fingerprint
from gems.models.servers.told_errors import with_told_errors
from gems.nodes.retry import retry_on
from gems.paths import make_folder
from gems.secrets import one_line
from gems.stopping import pause

if TYPE_CHECKING:
    from gems.models.open.open_pipeline import OpenPipeline

__all__ = ["Oracle", "Scorer", "SoftTifa", "arithmetic_mean", "geometric_mean", "init_scorer"]


class Scorer(Protocol):
    """Scores attempts, and keeps every score in a file so that none is paid for twice."""

    name: str

    @property
    def judge(self) -> str | None:
        """The chat model that judges; None if none does."""
        ...

    def check(self, prompts: Sequence[EvalPrompt]) -> None:
        """Check that images of these prompts can be scored, before any is drawn.

        Raises:
            InputError: They cannot.
            BackendError: The judge cannot be reached.
        """
        ...

    def score(self, prompt: EvalPrompt, generator: str, attempt: AttemptFields) -> list[float]:
        """One number per question of the prompt, for an attempt of a result made by that generator.

        Raises:
            InputError: This image cannot be scored, whoever tries.
            BackendError: The judge failed; if ``retryable``, it may score this image later.
        """
        ...


def arithmetic_mean(scores: Sequence[float]) -> float:
    """Soft-TIFA AM of one prompt."""
    return sum(scores) / len(scores)


def geometric_mean(scores: Sequence[float]) -> float:
    """Soft-TIFA GM of one prompt: 0 as soon as one score is 0."""
    return float(np.exp(np.mean(np.log(scores)))) if min(scores) > 0 else 0.0


class _ScoreFile:
    """A JSONL file of scores by key. A torn last line, as a killed process leaves it, is ignored and scored again.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, or another line holds no scores.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._scores: dict[str, list[float]] = {}
        try:
            for line in lines_in(path, _OPENING):
                self._note(line.number, line.text)
            mend_end(path, _OPENING)
        except OSError as error:
            raise InputError(f"{path} cannot be used ({error.strerror}); choose another folder with --out") from error

    def _note(self, number: int, line: bytes) -> None:
        try:
            parse_json(line)
            key, scores = _SCORES.validate_json(line)
        except ValueError:
            raise InputError(
                f"{self._path}, line {number} holds no scores; restore it, or delete it to have the image scored again"
            ) from None
        self._scores[key] = scores

    def get(self, key: str, count: int) -> list[float] | None:
        """So many scores by a key; None if there are none, or of another number."""
        scores = self._scores.get(key)
        return scores if scores is not None and len(scores) == count else None

    def put(self, key: str, scores: list[float]) -> list[float]:
        with self._lock:
            append_whole(self._path, (strict_json([key, scores]) + "\n").encode())
            self._scores[key] = scores
        return scores

    def knows(self, beginning: str) -> bool:
        """Whether there are scores whose key begins so."""
        return any(key.startswith(beginning) for key in self._scores)


_OPENING: Final = b'["'
"""How each line of such a file begins."""
_SCORES: Final = TypeAdapter(tuple[str, list[Annotated[float, Field(ge=0, le=1.01)]]])


# --- the oracle -----------------------------------------------------------------------------------------------------


class Oracle:
    """The exact truth about images of the pocket generators: 1.0 or 0.0 per question, from the slots of the image.

    Slots are computed again from prompt and seed. Nothing in a run reads them.

    Args:
        folder: The folder of the file of scores.
    """

    name = "oracle"
    judge: Final = None

    def __init__(self, folder: Path) -> None:
        self._file = _ScoreFile(folder / "scores-oracle.jsonl")
        self._images = stores_beside(folder)
        self._lock = threading.Lock()

    @staticmethod
    def knows(generator: str) -> bool:
        """Whether the truth about a generator's images is known."""
        return generator in (*POCKET, "open")

    def check(self, prompts: Sequence[EvalPrompt]) -> None:
        """See ``Scorer``. A prompt outside the pocket vocabulary is no reason to stop: its results are failures."""
        for prompt in prompts:
            with suppress(_OutsideVocabularyError):
                if prompt.stratum:
                    _open_questions(prompt)
                else:
                    _atoms_of(prompt, check(_spec_of(prompt), []))

    def score(self, prompt: EvalPrompt, generator: str, attempt: AttemptFields) -> list[float]:
        """See ``Scorer``.

        Raises:
            InputError: The prompt is not in the pocket vocabulary, or has a question that its spec does not answer.
        """
        key = f"{init_image_generator(generator).fingerprint[:12]} {attempt['sha256']} {prompt.prompt}"
        earlier_scores = self._file.get(key, len(prompt.questions))
        if earlier_scores is not None:
            return earlier_scores
        questions = _open_questions(prompt) if generator == "open" else []
        spec = None if questions else _spec_of(prompt)
        edit = _edit(attempt, self._images)
        try:
            with self._lock:  # a pipeline's scheduler keeps state between steps
                image = _drawn_again(generator, attempt, edit)
        except (ValueError, TypeError, KeyError) as error:  # another program has written the result or the image
            raise InputError(f"the oracle cannot draw {attempt['prompt'][:80]!r} again: {one_line(error)}") from None
        if spec is None:
            from gems.evals.open_oracle import holds

            return self._file.put(key, [float(holds(question, image)) for question in questions])
        truth = check(spec, image)
        return self._file.put(key, [float(truth[atom]) for atom in _atoms_of(prompt, truth)])


def _drawn_again(generator: str, attempt: AttemptFields, edit: dict[str, Any]) -> Any:
    """What is in the image of an attempt: the things, and with the open generator its background and text too."""
    if generator == "open":
        from gems.evals.open_oracle import truth_of

        return truth_of(_open_pipeline(), attempt["prompt"], attempt["seed"], **edit)
    return items_of(_pipeline(generator), attempt["prompt"], attempt["seed"], **edit)


def _open_questions(prompt: EvalPrompt) -> list[Any]:
    from gems.models.open.questions import parse_question

    meanings = [parse_question(q.question) for q in prompt.questions]
    if None in meanings:
        question = prompt.questions[meanings.index(None)].question
        raise _OutsideVocabularyError(f"the oracle has no answer to {question!r} in {prompt.prompt!r}")
    return meanings


@cache
def _open_pipeline() -> OpenPipeline:
    from gems.models.open.open_pipeline import OpenPipeline
    from gems.models.open.weights import GENERATOR, open_weights

    return OpenPipeline.from_pretrained(str(open_weights(GENERATOR)))


class _OutsideVocabularyError(InputError):
    """The oracle cannot read a prompt."""


def _spec_of(prompt: EvalPrompt) -> SceneSpec:
    try:
        return parse_prompt(prompt.prompt)
    except InputError as error:
        raise _OutsideVocabularyError(f"the oracle cannot read {prompt.prompt!r}: {error}") from error


def _atoms_of(prompt: EvalPrompt, truth: Mapping[str, bool]) -> list[str]:
    """The atom that each question of a prompt is about."""
    remaining = {q.skill: iter([a for a in truth if kind_of(a) == q.skill]) for q in prompt.questions}
    atoms = []
    for question in prompt.questions:
        atom = next(remaining[question.skill], None)
        if atom is None:
            raise InputError(f"the oracle has no answer to {question.question!r} in {prompt.prompt!r}")
        atoms.append(atom)
    return atoms


class _Edit(BaseModel):
    from_: str = Field(alias="from")
    keep: list[Any]
    fix: list[Any]


class _EditMetadata(BaseModel):
    """What an image file says about the edit that made it."""

    edit: _Edit


def _edit(attempt: AttemptFields, images: Sequence[ImageStore]) -> dict[str, Any]:
    """The pipeline's other arguments when it edited an image, from the image file's metadata."""
    if not attempt.get("edited_from"):
        return {}
    metadata = read_metadata(read_from(images, attempt["sha256"], attempt["image"]))
    try:
        edit = parse_model(_EditMetadata, metadata.get("gems", "")).edit
    except ValueError as error:
        raise InputError(f"the image {attempt['sha256'][:12]} does not say how it was edited ({error})") from None
    base = decode_png(read_from(images, edit.from_, ""))
    return {"image": base, "keep": edit.keep, "fix": edit.fix}


@cache
def _pipeline(generator: str) -> PocketPipeline:
    with without_bars():
        pipeline: PocketPipeline = PocketPipeline.from_pretrained(str(weights_folder(POCKET[generator])))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- Soft-TIFA ------------------------------------------------------------------------------------------------------

_NUMBERS: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMERALS: Final = {word: str(n) for n, word in enumerate(_NUMBERS, start=1)}
_TRIES: Final = 3
_NO_PROBABILITIES: Final = (
    "the judge gives no log-probabilities, which Soft-TIFA needs; choose another model with --judge"
)


class SoftTifa:
    """Soft-TIFA: the probability that a vision chat model gives to the right answer when asked for one word.

    Each question is a separate call, in the benchmark's wording, at temperature 0. The score is the summed probability
    of the benchmark's spellings of the answer among the alternatives of the first token (a count as a word or as a
    numeral). The benchmark's own script knows the probabilities of all tokens; a server gives the 20 likeliest, and a
    spelling that is not among them counts as 0.

    Args:
        model: A chat model that sees images and returns log-probabilities as OpenAI's API does.
        name: The model's name in the file of scores.
        folder: The folder of the file of scores.
        concurrency: Number of questions in flight for one image.
    """

    name = "soft-tifa"

    def __init__(self, model: BaseChatModel, name: str, folder: Path, concurrency: int = 4) -> None:
        self._chat = model
        self._model = model.bind(logprobs=True, top_logprobs=20, max_tokens=1, temperature=0)
        self.judge = name
        self._identity = f"{name} {model_fingerprint(model)}"
        self._file = _ScoreFile(folder / "scores-soft-tifa.jsonl")
        self._answers = _ScoreFile(folder / "answers-soft-tifa.jsonl")
        self._images = stores_beside(folder)
        self._concurrency = concurrency

    def check(self, prompts: Sequence[EvalPrompt]) -> None:
        """Ask the judge one question about a black image, unless it has judged before. See ``Scorer``."""
        if self._answers.knows(f"{self._identity} "):
            return
        buffer = io.BytesIO()
        Image.new("RGB", (256, 256)).save(buffer, "PNG")
        if not _alternatives(self._answer(base64.b64encode(buffer.getvalue()).decode(), prompts[0].questions[0])):
            raise InputError(f"{self.judge}: {_NO_PROBABILITIES}")
        self._answers.put(f"{self._identity} gives log-probabilities", [1.0])

    def score(self, prompt: EvalPrompt, generator: str, attempt: AttemptFields) -> list[float]:
        """See ``Scorer``.

        Raises:
            BackendError: The model gives no log-probabilities, or cannot be reached.
            GraphDrained: A stop was requested while it waited for the model's server.
        """
        key = f"{self._identity} {attempt['sha256']} {prompt.prompt}"
        earlier_scores = self._file.get(key, len(prompt.questions))
        if earlier_scores is not None:
            return earlier_scores
        image = base64.b64encode(read_from(self._images, attempt["sha256"], attempt["image"])).decode()
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = [pool.submit(copy_context().run, self._score_one, key, image, q) for q in prompt.questions]
        return self._file.put(key, [future.result() for future in futures])

    def _score_one(self, key: str, image: str, question: Vqa) -> float:
        """The score of one question, which was paid for, even if another one of the image fails."""
        own_key = f"{key} | {question.question} | {question.answer}"
        earlier_scores = self._answers.get(own_key, 1)
        [score] = earlier_scores or self._answers.put(own_key, [_probability(self._answer(image, question), question)])
        return score

    def _answer(self, image: str, question: Vqa) -> AIMessage:
        block = {"type": "image", "base64": image, "mime_type": "image/png"}
        text = {"type": "text", "text": f"{question.question} Answer in one word."}
        for attempt in Retrying(
            retry=retry_if_exception(lambda e: isinstance(e, Exception) and retry_on(e)),
            wait=wait_random_exponential(max=8),
            stop=stop_after_attempt(_TRIES),
            sleep=pause,
            reraise=True,
        ):
            with attempt:
                answer = with_told_errors(lambda: self._model.invoke([HumanMessage([block, text])]), self._chat)
        return answer


def _alternatives(answer: AIMessage) -> list[dict[str, Any]]:
    """The alternatives to an answer's first token, with log-probabilities; empty if the model gives none."""
    content = (answer.response_metadata.get("logprobs") or {}).get("content") or []
    return (content[0].get("top_logprobs") or [content[0]]) if content else []


def _probability(answer: AIMessage, question: Vqa) -> float:
    alternatives = _alternatives(answer)
    if not alternatives:
        raise BackendError(_NO_PROBABILITIES, retryable=False)
    probabilities = {a["token"]: math.exp(a["logprob"]) for a in alternatives}
    return sum(probabilities.get(spelling, 0.0) for spelling in _spellings(question))


def _spellings(question: Vqa) -> list[str]:
    """The first tokens that count as the answer: exactly those of GenEval 2's own script, in its order."""
    answer = question.answer
    if not question.question.startswith("How many"):
        lower = answer.lower()
        return [lower.capitalize(), lower, f" {lower}", f" {lower.capitalize()}"]
    words = [answer, answer.capitalize()]
    words += [f" {word}" for word in words]
    numeral = _NUMERALS.get(answer.lower())
    return list(dict.fromkeys([*words, numeral, f" {numeral}"] if numeral else words))


def init_scorer(
    name: str, generators: Sequence[str], judge: str, folder: Path, authority: Authority = NO_AUTHORITY
) -> Scorer:
    """The scorer of that name; "auto" is the oracle if it knows all generators, and Soft-TIFA otherwise.

    Raises:
        InputError: The name is unknown, the oracle does not know a generator, or the judge cannot be used.
    """
    from gems.models.registry import init_mllm

    make_folder(folder)
    has_truth = all(map(Oracle.knows, generators))
    if name == "oracle" and not has_truth:
        raise InputError("the oracle knows the truth about pocket and pocket-large only; use --scorer soft-tifa")
    if name == "oracle" or (name == "auto" and has_truth):
        return Oracle(folder)
    if name in ("auto", "soft-tifa"):
        return SoftTifa(init_mllm(judge, authority=authority), judge, folder)
    raise InputError(f"unknown scorer {name!r}; choose from: oracle, soft-tifa, auto")
