"""The child process of ``amx``: one prompt through every AMX kernel, which may crash it.

Run as ``python -m llama4_edge.runtime.bindings.amx_probe``; ends with status 0 when
llama.cpp succeeded.
"""

from __future__ import annotations

import ctypes
import tempfile
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from ...errors import EngineError
from .library import captured_log, llama

EMBD, HEADS, FF, VOCAB = 256, 4, 512, 256
PROMPT = 64  # tokens: more than one tile of 16 rows

# Each matrix has another of the types for which ggml has AMX kernels (ggml-cpu/amx/common.h).
_MATRICES: dict[str, tuple[tuple[int, int], GGMLQuantizationType]] = {
    "blk.0.attn_q": ((EMBD, EMBD), GGMLQuantizationType.Q4_0),
    "blk.0.attn_k": ((EMBD, EMBD), GGMLQuantizationType.Q4_1),
    "blk.0.attn_v": ((EMBD, EMBD), GGMLQuantizationType.Q8_0),
    "blk.0.attn_output": ((EMBD, EMBD), GGMLQuantizationType.Q4_K),
    "blk.0.ffn_gate": ((FF, EMBD), GGMLQuantizationType.Q5_K),
    "blk.0.ffn_up": ((FF, EMBD), GGMLQuantizationType.Q6_K),
    "blk.0.ffn_down": ((EMBD, FF), GGMLQuantizationType.IQ4_XS),
    "output": ((VOCAB, EMBD), GGMLQuantizationType.Q8_0),
}
_VECTORS = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")


def write_model(path: Path) -> None:
    """A Llama of one layer without a vocabulary, about 400 KiB; all its matrices are zero."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(2 * PROMPT)
    writer.add_embedding_length(EMBD)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    writer.add_tensor("token_embd.weight", np.ones((VOCAB, EMBD), np.float32))
    for name in _VECTORS:
        writer.add_tensor(f"{name}.weight", np.ones(EMBD, np.float32))
    for name, ((rows, length), kind) in _MATRICES.items():
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        empty = np.zeros((rows, length // block * block_bytes), np.uint8)
        writer.add_tensor(f"{name}.weight", empty, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode(path: Path) -> None:
    """Load the model on the CPU alone and decode a prompt, then one token."""
    bindings = llama()
    parameters = bindings.llama_model_default_params()
    # With a GPU at hand, llama.cpp keeps weights in pinned memory and repacks none, and the GPU
    # computes the prompt, even where it has no layers.
    no_devices = (ctypes.c_void_p * 1)()
    parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = True
    settings = bindings.llama_context_default_params()
    settings.n_ctx = 2 * PROMPT
    with captured_log() as log:
        model = bindings.llama_model_load_from_file(str(path).encode(), parameters)
        context = bindings.llama_init_from_model(model, settings) if model else None
        if not context:
            raise EngineError("the trial model does not load", found=log.last_error)
        for n_tokens in (PROMPT, 1):
            tokens = (ctypes.c_int32 * n_tokens)(*range(n_tokens))
            status = bindings.llama_decode(context, bindings.llama_batch_get_one(tokens, n_tokens))
            if status:
                raise EngineError("the trial prompt fails", found=f"status {status}")
        bindings.llama_free(context)
        bindings.llama_model_free(model)


def main() -> None:
    """Write the model into a directory that goes away, and decode."""
    with suppress(ImportError):  # on Windows, which writes no core files
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer here
    with tempfile.TemporaryDirectory(prefix="llama4-edge-") as directory:
        path = Path(directory) / "trial.gguf"
        write_model(path)
        decode(path)


if __name__ == "__main__":
    main()
