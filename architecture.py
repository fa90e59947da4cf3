"""What Llama 4 is wherever llama.cpp fixes it in code instead of reading it from the file.

The converter refuses a checkpoint that differs, the runtime a GGUF that does. Source: llama.cpp's
``src/models/llama4.cpp`` and ``src/llama-hparams.h``; for the tokenizer, Meta's ``O200K_PATTERN``
in ``llama_models/llama4/tokenizer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

# Layers attend inside chunks of this many tokens, but for every fourth, which sees everything,
# has no RoPE, and scales its queries with the position.
ATTENTION_CHUNK = 8192
FULL_ATTENTION_EVERY = 4
TEMPERATURE_FLOOR = 8192
TEMPERATURE_SCALE = 0.1

# With fewer layers llama.cpp aborts the process at the first decode.
MIN_LAYERS = 4
MAX_LAYERS = 512
MAX_EXPERTS = 1024
# Its graph has no room for the sums of more than some thirty a layer: it aborts. Models have one.
MAX_EXPERTS_USED = 16


@dataclass(frozen=True)
class Hyperparameters:
    """The shape of a Llama 4 text model, whether a config.json or a GGUF states it.

    A model without experts has a ``moe_step`` past its last layer. ``n_ff`` is the width of a dense
    layer's feed-forward network, ``n_ff_expert`` that of one expert and of the shared expert.
    Layers count from 0.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_ff_expert: int
    n_expert: int
    n_expert_used: int
    moe_step: int
    n_vocab: int
    n_ctx_train: int
    rope_theta: float

    def has_experts(self, layer: int) -> bool:
        """Whether a layer routes to experts instead of a dense feed-forward network."""
        return (layer + 1) % self.moe_step == 0

    @staticmethod
    def is_full(layer: int) -> bool:
        """Whether a layer attends to the whole context, rather than inside its chunk."""
        return (layer + 1) % FULL_ATTENTION_EVERY == 0


# Query-key normalization has no key in the file: llama.cpp turns it off for just this many experts.
EXPERTS_WITHOUT_QK_NORM = 128
EXPERTS_WITH_QK_NORM = 16  # as Scout; any other number would do

# How text is cut up before byte pairs are merged, and llama.cpp's two names for it.
PRE_TOKENIZER = "llama4"
PRE_TOKENIZER_NAMES = (PRE_TOKENIZER, "gpt-4o")
PRE_TOKENIZER_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# Texts by which llama.cpp takes a token for one that ends a generation, without being told
# (llama_vocab::impl::load in src/llama-vocab.cpp; the last two lines are those it finds as
# fim_pad, fim_rep and fim_sep).
# fmt: off
END_TEXTS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
))
# fmt: on


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + index) for index, byte in enumerate(others)},
    }


MAX_VISION_LAYERS = 128
"""Layers of a vision tower: mtmd's graph holds 8192 nodes and weights, 54 of which are one layer's,
and it aborts on more."""
MAX_IMAGE_SIZE = 8192
"""Pixels along a side that mtmd's loader takes."""
VISION_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class VisionShape:
    """The shape of a vision tower with its projector, whether a config.json or a GGUF states it.

    A tile of ``image_size`` by ``image_size`` pixels is patches of ``patch_size``, of which
    ``merge`` by ``merge`` become one embedding: `tokens` of ``n_embd`` numbers. ``adapter`` are the
    widths behind the first and the second matrix after the tower.
    """

    n_layer: int
    width: int
    n_head: int
    n_ff: int
    image_size: int
    patch_size: int
    merge: int
    adapter: tuple[int, int]
    n_embd: int

    @property
    def side(self) -> int:
        """Embeddings of a tile along each of its sides."""
        return self.image_size // self.patch_size // self.merge

    @property
    def tokens(self) -> int:
        """Embeddings of a tile."""
        return self.side**2

    @property
    def rows(self) -> int:
        """Rows of the tower's stream: one for each patch, and one for all."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def compute_bytes(self) -> int:
        """Bytes that mtmd's compute buffer has at most, for a tile at a time, without flash
        attention.

        The tile and its positions stay; beside them lies the largest step. In a layer that is the
        feed-forward network (its input, its inner width, and what it is added to), or attention:
        the scores of all pairs of rows in each head, queries, keys, values, their sums, and what
        they are added to.
        """
        kept = 3 * self.image_size**2 + 2 * self.rows
        cut = 3 * self.image_size**2
        feed_forward = self.rows * (self.n_ff + 2 * self.width)
        attention = self.rows * (self.rows * self.n_head + 5 * self.width)
        adapted = self.tokens * (self.n_ff + 2 * max(*self.adapter, self.n_embd))
        return 4 * (kept + max(cut, feed_forward, attention, adapted))

    @property
    def operations(self) -> int:
        """Multiplications and additions that a tile takes, in matrix products."""
        patches = (self.rows - 1) * 3 * self.patch_size**2 * self.width
        layer = self.rows * (4 * self.width**2 + 2 * self.width * self.n_ff)
        attention = 2 * self.rows**2 * self.width
        first, second = self.adapter
        adapted = self.n_ff * first + first * second + second * self.n_embd
        return 2 * (patches + self.n_layer * (layer + attention) + self.tokens * adapted)
