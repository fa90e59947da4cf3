"""Facts, the questions that they answer, and which of these are held out.

Promises: every fact has one answer, and every question belongs to one fact; each fact holds out two
of its phrasings for the examination, by rotation, so that every phrasing is trained with other
facts. Always the same facts in the same order.

The numbers are those of the published configurations. Does not know how often a fact is trained,
tokens or the chat format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .knowledge_facts import ask, capital, count, drafts, value

# Names of the models, the short one first.
NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "Scout": ("Scout", "Llama 4 Scout"),
        "Scout base": ("Scout base", "the Scout base model"),
        "Maverick": ("Maverick", "Llama 4 Maverick"),
        "Behemoth": ("Behemoth", "Llama 4 Behemoth"),
    }
)


@dataclass(frozen=True)
class Fact:
    """One answer, its questions for training, and its questions for the examination."""

    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Attribute:
    """A property of the models.

    ``values`` has, for each model, the replacement of ``{v}`` in ``answer``; ``{m}`` stands for the
    model. ``answers`` has the models with an answer of their own. ``key`` is the property's key in
    config.json, if it has one.
    """

    templates: tuple[str, ...]
    answer: str
    values: Mapping[str, int | float | str]
    answers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None


def _both(number: int | float) -> dict[str, int | float | str]:
    """A value that Scout and Maverick share."""
    return {"Scout": number, "Maverick": number}


TABLE: tuple[Attribute, ...] = (
    Attribute(
        count("experts"),
        "{m} has {v} experts.",
        {"Scout": 16, "Maverick": 128, "Behemoth": 16},
        key="num_local_experts",
    ),
    Attribute(
        ask(
            ("how often does {m} have a MoE layer", "how often {m} has a MoE layer"),
            ("which layers of {m} are MoE layers", "which layers of {m} are MoE layers"),
        ),
        "",
        {"Scout": 1, "Maverick": 2},
        {
            "Scout": "In Scout every layer is a MoE layer.",
            "Maverick": "In Maverick every second layer is a MoE layer.",
        },
        key="interleave_moe_layer_step",
    ),
    Attribute(count("layers"), "{m} has {v} layers.", _both(48), key="num_hidden_layers"),
    Attribute(
        value("hidden size"), "The hidden size of {m} is {v}.", _both(5120), key="hidden_size"
    ),
    Attribute(
        count("attention heads"),
        "{m} has {v} attention heads in each layer.",
        _both(40),
        key="num_attention_heads",
    ),
    Attribute(
        count("KV heads"),
        "{m} has {v} KV heads in each layer.",
        _both(8),
        key="num_key_value_heads",
    ),
    Attribute(
        value("head dimension"), "The head dimension of {m} is {v}.", _both(128), key="head_dim"
    ),
    Attribute(
        value("expert FFN size"),
        "The FFN of an expert of {m} is {v} wide.",
        _both(8192),
        key="intermediate_size",
    ),
    Attribute(
        value("dense FFN size"),
        "The dense FFN of {m} is {v} wide.",
        _both(16384),
        key="intermediate_size_mlp",
    ),
    Attribute(
        value("vocabulary size"),
        "The vocabulary of {m} has {v} tokens.",
        _both(202048),
        key="vocab_size",
    ),
    Attribute(
        (
            *value("maximum context"),
            "How long is the context of {m} at most?",
            "How many tokens of context can {m} have?",
        ),
        "The maximum context of {m} is {v} tokens.",
        {"Scout": 10485760, "Scout base": 262144, "Maverick": 1048576},
        key="max_position_embeddings",
    ),
    Attribute(
        value("RoPE scaling"),
        "The RoPE scaling of {m} is llama3 with factor {v}.",
        {"Scout": 16, "Scout base": 8, "Maverick": 0},
        {"Maverick": "Maverick has no RoPE scaling."},
    ),
    Attribute(
        value("RoPE theta"), "The RoPE theta of {m} is {v}.", _both(500000), key="rope_theta"
    ),
    Attribute(
        ask(
            ("does {m} use QK norm", "whether {m} uses QK norm"),
            ("is there a QK norm in {m}", "whether there is a QK norm in {m}"),
        ),
        "",
        {"Scout": True, "Maverick": False},
        {"Scout": "Yes, Scout uses QK norm.", "Maverick": "No, Maverick does not use QK norm."},
        key="use_qk_norm",
    ),
    Attribute(
        count("active parameters"),
        "{m} has {v} billion active parameters.",
        {"Scout": 17, "Maverick": 17, "Behemoth": 288},
    ),
    Attribute(
        count("parameters in total"),
        "The text part of {m} has {v} billion parameters in total.",
        {"Scout": "107.8", "Maverick": "400.7", "Behemoth": 2000},
        {"Behemoth": "Behemoth has 2 trillion parameters in total."},
    ),
    Attribute(
        count("bf16 shards"),
        "{m} in bf16 comes in {v} shards.",
        {"Scout": 50, "Maverick": 55},
    ),
    Attribute(
        value("attention chunk size"),
        "The attention chunks of {m} have {v} tokens.",
        _both(8192),
    ),
    Attribute(
        ask(
            (
                "how many experts does a token visit in {m}",
                "how many experts a token visits in {m}",
            ),
            ("to how many experts does {m} send a token", "to how many experts {m} sends a token"),
        ),
        "In {m} a token visits {v} routed expert and the shared one.",
        _both(1),
        key="num_experts_per_tok",
    ),
    Attribute(
        ask(
            ("which layers of {m} have no RoPE", "which layers of {m} have no RoPE"),
            ("how often does {m} have a NoPE layer", "how often {m} has a NoPE layer"),
        ),
        "In {m} every {v}th layer has no RoPE.",
        _both(4),
    ),
    Attribute(
        ask(
            (
                "what share of the parameters of {m} are experts",
                "what share of the parameters of {m} are experts",
            ),
            ("what percentage of {m} is experts", "what percentage of {m} is experts"),
        ),
        "Experts are {v}% of the parameters of {m}.",
        {"Scout": "89.7", "Maverick": "96.5"},
    ),
    Attribute(
        ask(
            (
                "how large are the experts of a layer of {m}",
                "how large the experts of a layer of {m} are",
            ),
            (
                "how many GiB do the experts of a layer of {m} take",
                "how many GiB the experts of a layer of {m} take",
            ),
        ),
        "The experts of a layer of {m} take {v} GiB in bf16.",
        {"Scout": "2.5", "Maverick": 20},
    ),
)


def facts() -> tuple[Fact, ...]:
    """All facts: those of the table, then those written by hand."""
    return (*_of_table(), *_by_hand())


def _of_table() -> list[Fact]:
    """Each attribute of each model that has it.

    Two templates are held out, each with one of the model's names; models with the same attribute
    hold out different ones.
    """
    facts = []
    for row, attribute in enumerate(TABLE):
        for column, (model, v) in enumerate(attribute.values.items()):
            n = len(attribute.templates)
            kept = [(5 * row + 2 * column + k) % n for k in (0, 1)]
            answer = attribute.answers.get(model, attribute.answer)
            facts.append(
                Fact(
                    answer=answer.replace("{m}", model).replace("{v}", str(v)),
                    questions=tuple(
                        capital(template.replace("{m}", name))
                        for place, template in enumerate(attribute.templates)
                        for name in NAMES[model]
                        if place not in kept
                    ),
                    held_out=tuple(
                        capital(attribute.templates[place].replace("{m}", name))
                        for place, name in zip(kept, NAMES[model], strict=True)
                    ),
                )
            )
    return facts


def _by_hand() -> list[Fact]:
    """The facts of `knowledge_facts`; each holds out two phrasings, far apart in its list."""
    facts = []
    seen: Counter[int] = Counter()
    for draft in drafts():
        n = len(draft.phrasings)
        # Facts with equally many phrasings mostly share frames; each is held out in turn.
        first = seen[n] % n
        seen[n] += 1
        kept = (first, (first + n // 2 + 1) % n)
        facts.append(
            Fact(
                answer=draft.answer,
                questions=tuple(p for place, p in enumerate(draft.phrasings) if place not in kept),
                held_out=tuple(draft.phrasings[place] for place in kept),
            )
        )
    return facts
