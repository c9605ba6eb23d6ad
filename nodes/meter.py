"""Counts what a node spends: on answered calls, failed calls, and tries that LangGraph discards."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook

from gems.errors import BackendError
from gems.graph.context import GemsContext
from gems.graph.state import Assignment, GemsState, Usage
from gems.models.calling import CALL, LOST_ANSWERS, REQUESTS
from gems.models.deadlines import BEFORE_CALL, MAY_SEND, SENDS
from gems.models.failures import has_sent_nothing
from gems.models.generators import FURTHER_IMAGES
from gems.nodes.lost_answers import Question, lost_answers
from gems.stopping import WaitEnded

__all__ = [
    "BEFORE_SPENDING",
    "Meter",
    "Stopwatch",
    "chatting",
    "hand_over",
    "metered",
    "owe",
    "paid_answers",
    "settle",
    "settle_run",
    "unsettled",
]

T = TypeVar("T")

BEFORE_SPENDING: Final[ContextVar[Callable[[str, Callable[[], Usage]], object] | None]] = ContextVar(
    "gems_before_spending", default=None
)
"""Called before a server is asked for an image or an answer: with the task, and a function that says what the task has
cost at most if the process is killed from then on."""


class Stopwatch:
    """Measures the seconds since its creation."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds."""
        return time.perf_counter() - self._start


class Meter(BaseCallbackHandler):
    """Adds up the cost of one node's chat calls, including those of its earlier, failed tries.

    Attributes:
        done: Answers that a try paid for before it failed; the next try uses them instead of calling again.
        images: One thing for each image that was made or that a server may have charged, in all tries.
        options: How the chat model of the node is called.
        is_ahead: Whether calls are made before they are needed, by nodes that do not see each other's.
        is_optional: Whether the run can do without the call that is made.
        reserved: Chat calls that must be left for what comes after. No answer is asked for again in their place.
    """

    raise_error = True
    run_inline = True  # on an event loop too: LangChain would use the application's own threads

    def __init__(self, before: Usage, context: GemsContext, node: str = "") -> None:
        self.done: dict[Any, Any] = {}
        self.images: set[object] = set()
        self.reserved = 0
        self._before, self._budget, self._context = before, context.budget, context
        self.play(node)
        self._task = node
        self._owed, self._calls = Usage(), Usage()
        self._in_flight: dict[object, int] = {}
        """Requests that calls without an answer yet may send, by call."""
        self._sent: dict[object, int] = {}
        """Requests that they have sent, as far as their clients say so."""
        self._questions: dict[object, Question] = {}
        """What they ask, for the cost of answers that stay unknown."""
        self._is_abandoned = False
        self._team: dict[str, Meter] = {node: self}
        """The meters of the nodes that run at the same time, this one included."""
        self.is_ahead = self.is_optional = False
        self._dearest: Usage | None = None
        """What the answer with the most tokens took."""
        self._watch = Stopwatch()

    def play(self, role: str) -> None:
        """Count the next calls as those of a role: by its prices, and with its options."""
        self.options, self._node = self._context.options_of(role), role

    @property
    def usage(self) -> Usage:
        """What the node has spent so far."""
        return self._owed + self._calls + Usage(images=len(self.images), seconds=self._watch.seconds)

    @property
    def total(self) -> Usage:
        """What the run has spent so far."""
        return self._before + self.usage

    @property
    def total_of_team(self) -> Usage:
        """What the run has spent so far, with what is spent by the nodes that run at the same time."""
        with _LOCK:
            return self._total_of_team

    @property
    def _total_of_team(self) -> Usage:
        other_usages = [meter.usage for meter in self._team.values() if meter is not self]
        return sum(other_usages, self.total).model_copy(update={"seconds": self.total.seconds})

    def may_draw(self, count: int, reserved: Sequence[object] = ()) -> bool:
        """Whether the budget has room for so many images more, which may be tries of the same ones; count them if so.

        What was begun may last longer than the budget's seconds.

        Args:
            count: How many images.
            reserved: The things to count for them; none if nothing is asked for yet.
        """
        with _LOCK:  # tasks that draw at the same time share the budget
            total = self._total_of_team.model_copy(update={"seconds": 0.0})
            has_room = self._budget.exhausted(total, images=count) is None
            self.images.update(reserved if has_room else ())
        images = total.images + len(reserved)
        if has_room and reserved and images - self._before.images > self._context.images_per_round:
            FURTHER_IMAGES.get()(images)
        if has_room and reserved:
            self._announce()
        return has_room

    def _announce(self) -> None:
        """Let what a kill would cost from now on be written down, since this process could not tell it then."""
        if announce := BEFORE_SPENDING.get():
            announce(self._task, self._most)

    def _most(self) -> Usage:
        """What the node has spent, if all that is in flight is charged."""
        with _LOCK:
            return self.usage + self._unanswered(self._in_flight)

    def exhausted(self, *, chat_calls: int = 1) -> bool:
        """Whether the run's budget has no room for this many more calls, beside those that the node is making."""
        with _LOCK:
            total, in_flight = self.total, sum(self._in_flight.values())
        return self._budget.exhausted(total, chat_calls=chat_calls + in_flight) is not None

    def room(self, most: int) -> int:
        """How many calls the run's budget has room for at the same time, of so many that are wanted."""
        counts = range(most, 0, -1)
        return next((n for n in counts if not self.exhausted(chat_calls=n) and self._affords(n)), 0)

    def _affords(self, count: int) -> bool:
        """Whether limits of tokens and cost have room for so many calls beside those that are being made.

        What a call takes is known only after it: each counts like the dearest so far, and the first is made alone.
        """
        if self._budget.tokens is None and self._budget.cost is None:
            return True
        with _LOCK:
            team = list(self._team.values())
            other_calls = count - 1 + sum(sum(meter._in_flight.values()) for meter in team)
            dearest = max((m._dearest for m in team if m._dearest), key=lambda usage: usage.tokens, default=None)
            if not other_calls:
                return True
            if dearest is None:
                return False
            return self._budget.exhausted(sum([dearest] * other_calls, self._total_of_team)) is None

    def must_stop(self) -> bool:
        """Whether another call for the same answer would exceed the budget, or take what is reserved."""
        return self.exhausted(chat_calls=1 + self.reserved)

    @contextmanager
    def optional(self, chat_calls: int) -> Iterator[None]:
        """Make calls that a run can do without, as long as so many others are left for what it cannot do without."""
        before, self.reserved, self.is_optional = self.reserved, chat_calls, True
        try:
            yield
        finally:
            self.reserved, self.is_optional = before, False

    def begin(self) -> None:
        """Reserve a call. One beyond the limit raises, and an optional one that would take what is reserved."""
        is_refused = (self.is_optional and self.must_stop()) or (self.is_ahead and not self._affords(1))
        if is_refused or not self.may_send(0):
            raise BackendError("the budget leaves no further call for this", retryable=False)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        invocation_params: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Note what a call asks. One that no caller of ours has reserved is reserved here, see ``begin``."""
        if CALL.get() not in self._in_flight:
            self.begin()
        self._questions[CALL.get()] = Question.of(self._node, self.options, messages, invocation_params or {})
        self._announce()

    def may_send(self, sent_requests: int) -> bool:
        """Reserve another request for the call that is being made. Returns whether there is room for it.

        Args:
            sent_requests: How many requests the call has sent.
        """
        call, most = CALL.get(), self._budget.chat_calls
        with _LOCK:
            if self._is_abandoned:
                return False
            requests = sum(meter._requests for meter in self._team.values()) - self._in_flight.get(call, 0)
            if most is not None and self._before.chat_calls + requests + sent_requests >= most:
                return False
            self._in_flight[call] = sent_requests + 1
        return True

    def sends(self, requests: int) -> bool:
        """Note how many requests the call that is being made has sent. Returns whether anybody waits for its answer."""
        with _LOCK:
            is_awaited = not self._is_abandoned
            if is_awaited:
                self._sent[CALL.get()] = requests
        if is_awaited and requests > 1:  # the first one was announced with the call
            self._announce()
        return is_awaited

    @property
    def calls_begun(self) -> int:
        """How many chat calls the run has made, with those that are not answered yet."""
        with _LOCK:
            return self._before.chat_calls + self._requests

    @property
    def _requests(self) -> int:
        """What the node has sent, and may send for the calls that it is making."""
        return self._owed.chat_calls + self._calls.chat_calls + sum(self._in_flight.values())

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Count an answer."""
        for generations in response.generations:
            for generation in generations:
                if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
                    cost = _cost(generation.message)
                    cost += Usage(extra_cost=self._budget.prices.extra_cost(self._node, cost))
                    self._count(cost, generation.message.response_metadata.get(LOST_ANSWERS, 0))
                    self._dearest = max(cost, self._dearest or cost, key=lambda usage: usage.tokens)

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        """Count a call without an answer, with the tries of its client, if it was sent. Its tokens are estimated."""
        known_count = error.requests if isinstance(error, (BackendError, WaitEnded)) else None
        requests = int(not has_sent_nothing(error)) if known_count is None else known_count
        self._count(Usage(chat_calls=requests), lost_answers(error))

    def _count(self, usage: Usage, lost_count: int) -> None:
        """Count what was spent in place of what was reserved, and the answers beyond it that are lost."""
        call = CALL.get()
        with _LOCK:
            if not self._is_abandoned:
                self._calls += usage + self._lost(call, lost_count)
                for counts in (self._in_flight, self._sent, self._questions):
                    counts.pop(call, None)

    def _lost(self, call: object, answers: int) -> Usage:
        """What so many answers to a call may have taken that nobody knows."""
        if not answers or call not in self._questions:
            return Usage()
        longest = max(meter._dearest.completion_tokens if meter._dearest else 0 for meter in self._team.values())
        return self._questions[call].lost(answers, longest, self._budget.prices)

    def _unanswered(self, requests: Mapping[object, int]) -> Usage:
        """What calls cost that have sent so many requests each, and got no answer."""
        return sum((Usage(chat_calls=n) + self._lost(call, n) for call, n in requests.items()), Usage())

    def abandon(self) -> None:
        """Count calls whose answers nobody waits for any more: they may be charged, and what they cost is estimated.

        What they have not sent is not charged, and is never sent, see ``sends``.
        """
        with _LOCK:
            self._calls += self._unanswered({call: self._sent.get(call, n) for call, n in self._in_flight.items()})
            self._in_flight.clear()
            self._is_abandoned = True

    def take_over(self, earlier: Meter) -> None:
        """Continue from where a failed try stopped."""
        self._owed, self.done, self.images = earlier.usage, earlier.done, earlier.images
        self._owed = self._owed.model_copy(update={"images": self._owed.images - len(self.images)})

    def join(self, node: str, team: dict[str, Meter]) -> None:
        """Count what the nodes spend that run at the same time: they began with the same usage of the run."""
        for other in [name for name, meter in team.items() if meter._before != self._before]:
            del team[other]
        team[node], self._team, self._task = self, team, node

    def start_from(self, usage: Usage) -> None:
        """Count what another process has paid for this node."""
        self._owed = usage


_METER: ContextVar[Meter | None] = ContextVar("gems_meter", default=None)
register_configure_hook(_METER, inheritable=True)

# These belong to the process, not to a graph: a run that goes on may do so in another graph, which is built for that.
_UNSETTLED: Final[dict[tuple[str, str], Meter]] = {}
"""Meters of failed tries, by run and task: LangGraph discards what a failed try did, but it has cost money."""
_ANSWERS: Final[dict[tuple[str, str], dict[Any, Any]]] = {}
"""What settled tries have paid for, by run and task, in case that the run goes on in this process."""
_MOST_UNSETTLED: Final = 10_000
"""So many are kept: a graph's own user may never settle those of a run that an error has ended."""
_TEAMS: Final[OrderedDict[str, dict[str, Meter]]] = OrderedDict()
"""The meters of the latest nodes, by run and task, of so many runs as may be under way."""
_MOST_TEAMS: Final = 1024
_LOCK: Final = threading.Lock()


@contextmanager
def metered(
    state: GemsState | Assignment, node: str, context: GemsContext, *, is_chatting: bool = True
) -> Iterator[Meter]:
    """Count the cost of the chat calls made inside the block, unless they are none of the node's own.

    The meter is one more callback; those of a parent run (a tracer, a stream) are not touched.
    ``with_structured_output(include_raw=True)`` would give the usage too, at five times the overhead.
    """
    task = _task(state, node)
    meter, key = Meter(state["usage"], context, node), (state["run_id"], task)
    with _LOCK:
        if key in _UNSETTLED:
            meter.take_over(_UNSETTLED.pop(key))
        meter.done |= _ANSWERS.pop(key, {})
        meter.join(task, _TEAMS.setdefault(state["run_id"], {}))
        _TEAMS.move_to_end(state["run_id"])
        if len(_TEAMS) > _MOST_TEAMS:
            _TEAMS.popitem(last=False)
    try:
        with _counting(meter if is_chatting else _METER.get(), meter):
            yield meter
    except BaseException:  # a cancelled task, too
        with _LOCK:
            _put(_UNSETTLED, key, meter)
        raise
    finally:
        meter.abandon()


@contextmanager
def _counting(chats: Meter | None, requests: Meter) -> Iterator[None]:
    token, may_send, sends = _METER.set(chats), MAY_SEND.set(requests.may_send), SENDS.set(requests.sends)
    before_call = BEFORE_CALL.set(chats.begin if chats else lambda: None)
    try:
        yield
    finally:
        _METER.reset(token)
        MAY_SEND.reset(may_send)
        SENDS.reset(sends)
        BEFORE_CALL.reset(before_call)


@contextmanager
def chatting(meter: Meter, role: str) -> Iterator[None]:
    """Count the chat calls in the block as those of a role, in a node that makes none of its own."""
    meter.play(role)
    meter.is_ahead = True
    with _counting(meter, meter):
        yield


def _task(state: GemsState | Assignment, node: str) -> str:
    """A node's task: several draw at the same time where a round has several proposals."""
    place = state.get("place", 0)
    return f"{node}.{place}" if place else node


def _put(entries: dict[tuple[str, str], T], key: tuple[str, str], value: T) -> None:
    entries[key] = value
    if len(entries) > _MOST_UNSETTLED:
        del entries[next(iter(entries))]


def paid_answers(state: GemsState | Assignment, node: str) -> dict[Any, Any]:
    """What a node's failed tries have paid for, see ``Meter.done``."""
    with _LOCK:
        meter = _UNSETTLED.get((state.get("run_id", ""), _task(state, node)))
    return meter.done if meter else {}


def settle(state: GemsState | Assignment, node: str) -> Usage:
    """The cost of a node's failed tries when the node is not tried again."""
    with _LOCK:
        meter = _UNSETTLED.pop((state.get("run_id", ""), _task(state, node)), None)
    return meter.usage if meter else Usage()


def hand_over(state: GemsState | Assignment, node: str) -> Usage:
    """The cost of a node's failed tries, if the node is done again by a later step; that one has their answers."""
    key = (state.get("run_id", ""), _task(state, node))
    with _LOCK:
        earlier = _UNSETTLED.pop(key, None)
        if earlier is None:
            return Usage()
        later = Meter(Usage(), GemsContext())
        later.done = earlier.done
        _UNSETTLED[key] = later
    return earlier.usage


def settle_run(run_id: str) -> Usage:
    """The cost of a stopped run's nodes that were interrupted, and will be done again, maybe by another process."""
    with _LOCK:
        meters = {key: _UNSETTLED.pop(key) for key in list(_UNSETTLED) if key[0] == run_id}
        for key, meter in meters.items():
            if meter.done:
                _put(_ANSWERS, key, meter.done)
    return sum((meter.usage for meter in meters.values()), Usage())


def unsettled(run_id: str) -> dict[str, Usage]:
    """What a run's failed or interrupted tries have cost that nothing has counted yet, by node."""
    with _LOCK:
        return {node: meter.usage for (run, node), meter in _UNSETTLED.items() if run == run_id}


def owe(run_id: str, node: str, usage: Usage) -> None:
    """Let a node's next try begin with what another process has paid for it, unless this process knows more."""
    meter = Meter(Usage(), GemsContext())
    meter.start_from(usage)
    with _LOCK:
        _UNSETTLED.setdefault((run_id, node), meter)


def _cost(message: AIMessage) -> Usage:
    """The cost of one answer, as its provider counts it."""
    tokens = message.usage_metadata
    return Usage(
        chat_calls=message.response_metadata.get(REQUESTS, 1),
        prompt_tokens=tokens["input_tokens"] if tokens else 0,
        completion_tokens=tokens["output_tokens"] if tokens else 0,
    )
