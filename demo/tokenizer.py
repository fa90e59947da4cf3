"""The small checkpoint's tokenizer and chat template, in the form of Llama 4's.

Promises: a byte-level BPE with Llama 4's pre-tokenizer, the names of its special tokens and its
beginning-of-text rule, trained on a page of text; a chat template with the output of Meta's
``ChatFormat``.

Does not know the model, only the size of its vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

TemplatePlace = Literal["chat_template.jinja", "tokenizer_config.json", "chat_template.json"]

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
    "<|reasoning_thinking_start|>",
    "<|reasoning_thinking_end|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|reserved_special_token_2|>",
)

# Llama 4's pre-tokenizer: the pattern in llama_models/llama4/tokenizer.py.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PRE_TOKENIZER_PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# Llama 4's conversation format, with the tokens of Meta's ChatFormat. Llama 4's processor replaces
# `<|image|>` by the picture's tokens.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif part['type'] == 'image' -%}
                {{- '<|image|>' -}}
            {%- else -%}
                {{- raise_exception('this template takes text and images, not ' + part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- set from_tool = message['role'] in ('tool', 'ipython') -%}
    {{- '<|header_start|>' + ('ipython' if from_tool else message['role']) + '<|header_end|>\\n\\n' -}}
    {{- text_of(message['content']) -}}
    {{- '<|eom|>' if from_tool else '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' -}}
{%- endif -%}
"""  # noqa: E501

# The training text of the small tokenizer: prose, code, digits and a few other scripts.
_TRAINING_TEXT = """\
The harbour was quiet before sunrise. A fisherman mended his nets beside the water, and the gulls
waited on the wall for something to happen. Nobody in the village could remember a winter so mild;
even the oldest houses, with their narrow windows and heavy doors, stood open to the morning air.
"Shall we go out today?" asked the boy. "We'll go when the wind turns," said his grandfather, "and
not a minute earlier. It's the wind that decides; we're only passengers, and they've never listened
to anyone who shouted. I'd rather wait than swim." The boy didn't answer. He counted the boats: 1,
2, 3, 12, 27, 148, and one more that was painted blue. Then he wrote the numbers into a little book.
What is a model? A model is a story about numbers, told quickly. It reads a question, looks at every
word, and guesses what comes next. Sometimes the guess is right. Sometimes it is wonderful. An
expert knows one thing very well; a router knows which expert to ask. Together they know many things
that neither of them could explain. Please explain how this works, step by step, and thank you.
def distance(points, origin=(0, 0)):
    total = 0.0
    for index, (x, y) in enumerate(points):
        if index % 2 == 0 and x != origin[0]:
            total += ((x - origin[0]) ** 2 + (y - origin[1]) ** 2) ** 0.5
    return {"total": total, "count": len(points)}
#include <stdio.h>
int main(void) { printf("Hello, world!\\n"); return 0; }
SELECT name, price FROM products WHERE price > 10.50 ORDER BY name; -- https://example.org/list?page=2
Der Wind kommt aus dem Norden, und die Kinder laufen über die Brücke nach Hause. Où est la gare ?
Elle est derrière le marché, à côté de la vieille église. El río cruza la ciudad y llega al mar.
Утром над рекой стоял туман, и лодки ждали у берега. Το πρωί η θάλασσα ήταν ήσυχη.
朝の港は静かだった。今天的天气很好。오늘은 바람이 분다. في الصباح كان البحر هادئا. सुबह की हवा ठंडी थी।
"""  # noqa: E501, RUF001


def write_tokenizer(
    directory: Path, tokenizer: Path | Tokenizer, size: int, max_positions: int
) -> dict[str, int]:
    """Write a tokenizer, or copy that of a directory; return the ids of its special tokens.

    Raises:
        ValueError: it does not have ``size`` tokens.
    """
    target = directory / "tokenizer.json"
    if isinstance(tokenizer, Path):
        shutil.copyfile(tokenizer / "tokenizer.json", target)
        tokenizer = Tokenizer.from_file(str(target))
    else:
        tokenizer.save(str(target))
    if tokenizer.get_vocab_size() != size:
        raise ValueError(
            f"a tokenizer of {tokenizer.get_vocab_size()} tokens for a model of {size}"
        )
    added = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}
    _write_tokenizer_config(directory, max_positions, added)
    return {content: id_ for id_, content in added.items()}


def train_tokenizer(size: int, texts: Iterable[str] = (_TRAINING_TEXT,)) -> Tokenizer:
    """A byte-level BPE of ``size`` tokens built as transformers' TikTokenConverter builds one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.model.ignore_merges = True
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return tokenizer


def _write_tokenizer_config(directory: Path, max_positions: int, added: dict[int, str]) -> None:
    named = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "pad_token": "<|finetune_right_pad|>",
    }
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(id_): {"content": content, "special": True} | flags
        for id_, content in sorted(added.items())
    }
    config = named | {
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "special_tokens_map.json", named)


def write_chat_template(directory: Path, place: TemplatePlace) -> None:
    """Write the chat template to one of the files that versions of transformers use."""
    path = directory / place
    if place == "chat_template.jinja":
        path.write_text(CHAT_TEMPLATE, encoding="utf-8")
        return
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, settings | {"chat_template": CHAT_TEMPLATE})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file with the layout of transformers."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
