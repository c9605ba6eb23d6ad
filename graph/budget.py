"""What a run may spend, and what it costs. Settings need this and nothing else of the state, which needs LangGraph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat

if TYPE_CHECKING:
    from gems.graph.state import Usage

__all__ = ["MAX_PROMPTS", "Budget", "Frozen", "Prices", "TokenPrices"]


MAX_PROMPTS: Final = 16
"""So many prompts a round draws at most, whoever proposes them."""


class Frozen(BaseModel):
    """A record that does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_MAX_PRICE: Final = 1e12
"""No model costs as much, in any currency; and whatever was spent has a cost that is a number."""


def _is_a_price(price: float) -> float:
    if price > _MAX_PRICE:
        raise ValueError(f"no model costs more than {_MAX_PRICE:g}")
    return price


_Price: TypeAlias = Annotated[NonNegativeFloat, AfterValidator(_is_a_price)]


class TokenPrices(Frozen):
    """Prices of a million tokens of one role's chat model; what is empty costs as for all roles."""

    model_config = ConfigDict(allow_inf_nan=False)

    prompt: _Price | None = Field(default=None, title="Prompt tokens", description="Tokens that it reads.")
    completion: _Price | None = Field(default=None, title="Completion tokens", description="Tokens that it writes.")


class Prices(Frozen):
    """Prices of models, in any one currency, from the provider's price list."""

    model_config = ConfigDict(allow_inf_nan=False)

    image: _Price = Field(default=0.0, title="Image", description="Price of one image.")
    prompt: _Price = Field(
        default=0.0, title="Prompt tokens", description="Price of a million tokens that chat models read."
    )
    completion: _Price = Field(
        default=0.0, title="Completion tokens", description="Price of a million tokens that chat models write."
    )

    roles: dict[Literal["planner", "decomposer", "verifier", "refiner"], TokenPrices] = Field(
        default_factory=dict,
        exclude_if=lambda roles: not roles,
        title="Prices by role",
        description="Prices of tokens of single roles, whose models may be others.",
    )

    def cost(self, usage: Usage) -> float:
        """The cost of this usage, in the currency of the prices."""
        return usage.images * self.image + self._of_tokens(usage, self.prompt, self.completion) + usage.extra_cost

    def counted_cost(self, usage: Usage) -> float:
        """What limits count: the cost that is known, and an estimate of that of lost answers."""
        return self.cost(usage) + usage.lost_cost

    def extra_cost(self, role: str, usage: Usage) -> float:
        """What a role's tokens cost beyond the common prices; they are counted with it in a ``Usage``."""
        own = next((prices for name, prices in self.roles.items() if name == role), None)
        if own is None:
            return 0.0
        prompt = self.prompt if own.prompt is None else own.prompt
        completion = self.completion if own.completion is None else own.completion
        return self._of_tokens(usage, prompt - self.prompt, completion - self.completion)

    @property
    def dearest_token(self) -> float:
        """The highest price of a million tokens, of whatever kind and role."""
        own = (price for prices in self.roles.values() for price in (prices.prompt, prices.completion))
        return max(self.prompt, self.completion, *filter(None, own))

    @staticmethod
    def _of_tokens(usage: Usage, prompt: float, completion: float) -> float:
        return (usage.prompt_tokens * prompt + usage.completion_tokens * completion) / 1e6


class Budget(Frozen):
    """Upper limits on what a run may spend; None is no limit. Checked before every spend."""

    model_config = ConfigDict(allow_inf_nan=False)

    chat_calls: int | None = Field(default=None, ge=1, title="Chat calls", description="Most chat model calls.")
    tokens: int | None = Field(default=None, ge=1, title="Tokens", description="Most prompt and completion tokens.")
    images: int | None = Field(default=None, ge=1, title="Images", description="Most images made.")
    seconds: float | None = Field(default=None, gt=0, title="Seconds", description="Most seconds of work in nodes.")
    cost: float | None = Field(default=None, gt=0, title="Cost", description="Most money, by the prices below.")
    prices: Prices = Field(default_factory=Prices, title="Prices", description="What the models cost.")

    def exhausted(self, usage: Usage, *, chat_calls: int = 0, images: int = 0) -> str | None:
        """The name of the limit that this further spending would exceed, or None if there is room for it.

        Tokens and seconds are unknown before a call: they count as exhausted once the limit is reached.
        """
        if self.chat_calls is not None and usage.chat_calls + chat_calls > self.chat_calls:
            return "chat calls"
        if self.images is not None and usage.images + images > self.images:
            return "images"
        if self.tokens is not None and usage.counted_tokens >= self.tokens:
            return "tokens"
        if self.seconds is not None and usage.seconds >= self.seconds:
            return "seconds"
        if self.cost is not None:
            cost = self.prices.counted_cost(usage)
            more = images * self.prices.image
            # What costs nothing, such as calls of a model without a price that judge the last image, may go on. Prices
            # are floats: the tolerance keeps a limit that is reached exactly from counting as exceeded.
            is_free = not more and not self.prices.dearest_token
            if not is_free and (cost >= self.cost or cost + more > self.cost * (1 + 1e-9)):
                return "cost"
        return None
