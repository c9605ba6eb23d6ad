"""Soft-TIFA with a judge of fixed probabilities, and the oracle on pocket images."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.errors import GraphDrained
from pydantic import Field
from scipy.stats import gmean

from gems.errors import BackendError, InputError
from gems.evals.prompts import EvalPrompt, Vqa, fresh_prompts
from gems.evals.scorers import Oracle, SoftTifa, arithmetic_mean, geometric_mean, init_scorer
from gems.memory.image_store import ImageStore
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.pocket.chat import PocketChatModel
from gems.models.registry import init_image_generator
from gems.stopping import stopping

TWO_CATS = EvalPrompt(
    "two cats",
    2,
    (Vqa("How many cats are in the image?", "two", "count"), Vqa("Are there any cats in the image?", "Yes", "object")),
)


class Judge(BaseChatModel):
    """Gives fixed probabilities per question in OpenAI's format, and records the questions."""

    chances: dict[str, dict[str, float]]
    questions: list[str] = Field(default_factory=list)
    failures: int = 0
    fingerprint: str = ""

    @property
    def _llm_type(self) -> str:
        return "judge"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        assert kwargs == {"logprobs": True, "top_logprobs": 20, "max_tokens": 1, "temperature": 0}
        image, text = messages[-1].content
        assert image["type"] == "image"
        self.questions.append(text["text"])
        if len(self.questions) <= self.failures:
            raise TimeoutError("busy")
        chances = self.chances[text["text"].removesuffix(" Answer in one word.")]
        tokens = [{"token": t, "logprob": math.log(p)} for t, p in chances.items()]
        metadata = {"logprobs": {"content": [{**tokens[0], "top_logprobs": tokens}]}} if tokens else {}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("x", response_metadata=metadata))])


@pytest.fixture
def cats() -> dict[str, Any]:
    """An attempt of a result: an image of two cats."""
    [generated] = init_image_generator("pocket").generate([ImageRequest("two cats", 1)])
    assert isinstance(generated, GeneratedImage)
    ref = ImageStore().put(generated.image, {})
    return {"prompt": "two cats", "seed": 1, "image": ref.uri, "sha256": ref.sha256}


def test_spellings_of_the_right_answer_are_summed(tmp_path: Path, cats: dict[str, Any]) -> None:
    judge = Judge(
        chances={
            "How many cats are in the image?": {"two": 0.5, " Two": 0.1, "2": 0.15, "three": 0.2},
            "Are there any cats in the image?": {"Yes": 0.6, "yes": 0.3, "No": 0.05},
        }
    )
    scorer = SoftTifa(judge, "judge", tmp_path)
    scores = scorer.score(TWO_CATS, "pocket", cats)
    assert scores == pytest.approx([0.75, 0.9])
    assert arithmetic_mean(scores) == pytest.approx(0.825)
    assert geometric_mean(scores) == pytest.approx(math.sqrt(0.75 * 0.9))
    assert sorted(judge.questions)[0] == "Are there any cats in the image? Answer in one word."
    assert scorer.score(TWO_CATS, "pocket", cats) == scores
    again = SoftTifa(judge, "judge", tmp_path)
    assert again.score(TWO_CATS, "pocket", cats) == scores
    assert len(judge.questions) == 2, "scores on disk are not computed again"


NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
OFFICIAL = {"Yes": ["Yes", "yes", " yes", " Yes"]} | {
    word: [word, word.title(), f" {word}", f" {word.title()}", f"{n}", f" {n}"] for word, n in NUMBERS.items()
}
"""The first tokens that the benchmark counts as an answer."""


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_the_benchmarks_own_to_the_last_digit(tmp_path: Path, cats: dict[str, Any], seed: int) -> None:
    """Against the published formulae, written again: sums of probabilities, and means of the scores of a prompt."""
    rng = random.Random(seed)
    others = ["YES", "Yes.", "\nyes", "TWO", "no", "No", "zero", "eleven", " ", "other"]
    questions = [Vqa(f"How many things of sort {word} are there?", word, "count") for word in OFFICIAL if word != "Yes"]
    questions += [Vqa("Are there any cats in the image?", "Yes", "object")]
    chances = {}
    for question in questions:
        tokens = [*OFFICIAL[question.answer], *others]
        weights = [rng.random() * 10.0 ** -rng.randint(0, 9) for _ in tokens]
        chances[question.question] = {t: w / sum(weights) for t, w in zip(tokens, weights, strict=True)}
    prompt = EvalPrompt("cats", 10, tuple(questions))
    scores = SoftTifa(Judge(chances=chances), "judge", tmp_path).score(prompt, "pocket", cats)
    expected = []
    for question in questions:
        logarithms = {t: math.log(p) for t, p in chances[question.question].items()}
        expected.append(sum(math.exp(logarithms[token]) for token in OFFICIAL[question.answer]))
    assert scores == expected
    assert arithmetic_mean(scores) == sum(expected) / len(expected)
    assert geometric_mean(scores) == gmean(expected)


def test_a_geometric_mean_of_small_probabilities_is_not_zero(tmp_path: Path, cats: dict[str, Any]) -> None:
    chances = {q.question: {"two": 1e-12, "Yes": 1e-9, "no": 0.9} for q in TWO_CATS.questions}
    scores = SoftTifa(Judge(chances=chances), "judge", tmp_path).score(TWO_CATS, "pocket", cats)
    assert geometric_mean(scores) == pytest.approx(math.sqrt(1e-12 * 1e-9), rel=1e-12)
    assert geometric_mean([0.0, 1.0]) == 0.0


def test_scores_of_another_judge_under_the_same_name_are_not_used(tmp_path: Path, cats: dict[str, Any]) -> None:
    for fingerprint, chance in (("1", 0.25), ("2", 0.5)):
        judge = Judge(
            chances={q.question: {"2": chance, "Yes": chance} for q in TWO_CATS.questions}, fingerprint=fingerprint
        )
        assert SoftTifa(judge, "judge", tmp_path).score(TWO_CATS, "pocket", cats) == [chance, chance]


def test_a_transient_fault_of_the_judge_is_retried(tmp_path: Path, cats: dict[str, Any]) -> None:
    eval_prompt = EvalPrompt("two cats", 2, TWO_CATS.questions[:1])
    judge = Judge(chances={"How many cats are in the image?": {"2": 0.25}}, failures=1)
    assert SoftTifa(judge, "judge", tmp_path).score(eval_prompt, "pocket", cats) == [0.25]
    assert len(judge.questions) == 2


def test_a_stop_ends_the_wait_for_a_judge_that_is_busy(tmp_path: Path, cats: dict[str, Any]) -> None:
    judge = Judge(chances={}, failures=9)
    with pytest.raises(GraphDrained), stopping(lambda: True):
        SoftTifa(judge, "judge", tmp_path).score(TWO_CATS, "pocket", cats)
    assert sorted(judge.questions) == sorted(f"{q.question} Answer in one word." for q in TWO_CATS.questions)


def test_an_answer_of_the_judge_is_paid_for_once(tmp_path: Path, cats: dict[str, Any]) -> None:
    """The judge fails at one question of an image, for good; the others are not asked again."""
    chances = {q.question: {"2": 0.25, "Yes": 0.25} for q in TWO_CATS.questions}
    judge = Judge(chances={**chances, TWO_CATS.questions[0].question: {}})
    with pytest.raises(BackendError, match="no log-probabilities"):
        SoftTifa(judge, "judge", tmp_path).score(TWO_CATS, "pocket", cats)
    again = Judge(chances=chances)
    scorer = SoftTifa(again, "judge", tmp_path)
    scorer.check([TWO_CATS])
    assert scorer.score(TWO_CATS, "pocket", cats) == [0.25, 0.25]
    assert again.questions == [f"{TWO_CATS.questions[0].question} Answer in one word."]


def test_a_judge_is_tried_once_for_all_starts(tmp_path: Path) -> None:
    judge = Judge(chances={TWO_CATS.questions[0].question: {"2": 0.25}})
    for _ in range(3):
        SoftTifa(judge, "judge", tmp_path).check([TWO_CATS])
    assert len(judge.questions) == 1


def test_a_judge_without_log_probabilities_is_refused(tmp_path: Path, cats: dict[str, Any]) -> None:
    judge = Judge(chances={q.question: {} for q in TWO_CATS.questions})
    with pytest.raises(BackendError, match="no log-probabilities"):
        SoftTifa(judge, "judge", tmp_path).score(TWO_CATS, "pocket", cats)


@pytest.mark.slow
def test_the_pocket_judge_agrees_with_the_oracle_on_clear_images(tmp_path: Path) -> None:
    generator, images = init_image_generator("pocket"), ImageStore()
    oracle, judge = Oracle(tmp_path), SoftTifa(PocketChatModel(), "pocket", tmp_path)
    agreed = total = 0
    for seed, prompt in enumerate(fresh_prompts(6, seed=12)):
        [generated] = generator.generate([ImageRequest(prompt.prompt, seed)])
        assert isinstance(generated, GeneratedImage)
        ref = images.put(generated.image, {})
        attempt = {"prompt": prompt.prompt, "seed": seed, "image": ref.uri, "sha256": ref.sha256}
        truth, judged = (s.score(prompt, "pocket", attempt) for s in (oracle, judge))
        assert len(truth) == len(judged) == len(prompt.questions)
        assert set(truth) <= {0.0, 1.0}
        total += len(truth)
        agreed += sum((t >= 0.5) == (s >= 0.5) for t, s in zip(truth, judged, strict=True))
    assert agreed / total > 0.8


def test_a_torn_line_of_scores_is_scored_again(tmp_path: Path, cats: dict[str, Any]) -> None:
    path = tmp_path / "scores-oracle.jsonl"
    before = Oracle(tmp_path).score(TWO_CATS, "pocket", cats)
    [line] = path.read_text().splitlines()
    path.write_text(line[:-4])
    assert Oracle(tmp_path).score(TWO_CATS, "pocket", cats) == before
    assert json.loads(path.read_text().splitlines()[-1])[1] == before


def test_scorers_by_name(tmp_path: Path) -> None:
    assert init_scorer("auto", ["pocket"], "pocket", tmp_path).name == "oracle"
    assert init_scorer("auto", ["diffusers:x"], "pocket", tmp_path).name == "soft-tifa"
    with pytest.raises(InputError, match="the oracle knows"):
        init_scorer("oracle", ["pocket", "diffusers:x"], "pocket", tmp_path)
    with pytest.raises(InputError, match="unknown scorer"):
        init_scorer("best", ["pocket"], "pocket", tmp_path)
