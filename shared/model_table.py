"""What is known of each model: where it is, how much it reads and says, and what it costs."""

from decimal import Decimal

from shared.providers.chat import Usage
from shared.settings import ModelFacts, Settings

MILLION = 1_000_000
# For models without a price, of which nobody must think that they are free: about a large open model's.
UNKNOWN_INPUT_USD, UNKNOWN_OUTPUT_USD = Decimal("1"), Decimal("3")


def _priced(context_tokens: int, input_usd: str, output_usd: str, cached_input_usd: str | None = None) -> ModelFacts:
    return ModelFacts(
        context_tokens=context_tokens,
        input_usd=Decimal(input_usd),
        output_usd=Decimal(output_usd),
        cached_input_usd=Decimal(cached_input_usd) if cached_input_usd else None,
    )


# List prices, which change: MODELS and MODELS_FILE add to them and win.
MODELS = {
    "openai:gpt-4o-mini": _priced(128_000, "0.15", "0.60", "0.075"),
    "openai:gpt-4o": _priced(128_000, "2.50", "10", "1.25"),
    "openai:gpt-4.1": _priced(1_047_576, "2", "8", "0.50"),
    "openai:gpt-4.1-mini": _priced(1_047_576, "0.40", "1.60", "0.10"),
    "openai:gpt-4.1-nano": _priced(1_047_576, "0.10", "0.40", "0.025"),
    "openai:o3": _priced(200_000, "2", "8", "0.50"),
    "openai:o4-mini": _priced(200_000, "1.10", "4.40", "0.275"),
    "openai:gpt-5": _priced(400_000, "1.25", "10", "0.125"),
    "openai:gpt-5-mini": _priced(400_000, "0.25", "2", "0.025"),
    "openai:gpt-5-nano": _priced(400_000, "0.05", "0.40", "0.005"),
    "groq:llama-3.3-70b-versatile": _priced(131_072, "0.59", "0.79"),
    "groq:llama-3.1-8b-instant": _priced(131_072, "0.05", "0.08"),
    "groq:openai/gpt-oss-120b": _priced(131_072, "0.15", "0.75"),
    "groq:openai/gpt-oss-20b": _priced(131_072, "0.10", "0.50"),
    "together:meta-llama/Llama-3.3-70B-Instruct-Turbo": _priced(131_072, "0.88", "0.88"),
    "together:meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo": _priced(131_072, "0.18", "0.18"),
    "replicate:meta/meta-llama-3-70b-instruct": _priced(8_192, "0.65", "2.75"),
    "replicate:meta/meta-llama-3-8b-instruct": _priced(8_192, "0.05", "0.25"),
}


def facts(settings: Settings, name: str) -> ModelFacts:
    """All that is known of `provider:model`: its own row first, then its provider's, then everybody's."""
    provider = name.partition(":")[0]
    known = ModelFacts()
    for row in ("*", f"{provider}:*", name):
        for table in (MODELS, settings.models_file or {}, settings.models or {}):
            if row in table:
                known = known.model_copy(update=table[row].model_dump(exclude_none=True))
    return known


def is_priced(known: ModelFacts) -> bool:
    """Whether a cost is what the provider will charge."""
    return known.input_usd is not None and known.output_usd is not None


def cost_usd(known: ModelFacts, usage: Usage) -> Decimal:
    """What the tokens cost: cached input and reasoning at their own price where they have one."""
    input_usd = UNKNOWN_INPUT_USD if known.input_usd is None else known.input_usd
    output_usd = UNKNOWN_OUTPUT_USD if known.output_usd is None else known.output_usd
    cached_usd = input_usd if known.cached_input_usd is None else known.cached_input_usd
    reasoning_usd = output_usd if known.reasoning_usd is None else known.reasoning_usd
    return (
        (usage.input_tokens - usage.cached_tokens) * input_usd
        + usage.cached_tokens * cached_usd
        + (usage.output_tokens - usage.reasoning_tokens) * output_usd
        + usage.reasoning_tokens * reasoning_usd
    ) / MILLION
