"""Which flag sets which setting, for errors: the library names settings, a person gives flags."""

from __future__ import annotations

import re

# The settings of the library, by the flag of the command line.
FLAG_OF = {
    "api_keys": "--api-key",
    "control_vector_layers": "--control-vector-layer-range",
    "control_vectors": "--control-vector",
    "cache_ram": "-cram",
    "cors_origins": "--cors-origin",
    "cpu_moe": "-cmoe",
    "dry_allowed_length": "--dry-allowed-length",
    "dry_base": "--dry-base",
    "dry_multiplier": "--dry-multiplier",
    "dry_penalty_last_n": "--dry-penalty-last-n",
    "dry_run": "--dry-run",
    "dry_sequence_breakers": "--dry-sequence-breaker",
    "dynatemp_exponent": "--dynatemp-exp",
    "dynatemp_range": "--dynatemp-range",
    "first_chunk": "--from-chunk",
    "flash_attention": "-fa",
    "frequency_penalty": "--frequency-penalty",
    "grace_seconds": "--grace",
    "hosts": "--allowed-host",
    "keep_source": "--keep-source",
    "kv_type": "-ctk",
    "load_mode": "-lm",
    "logit_bias": "-l",
    "max_body": "--max-body",
    "max_queue": "--max-queue",
    "max_tokens": "-n",
    "merge_lora": "--merge-lora",
    "min_p": "--min-p",
    "mirostat_eta": "--mirostat-lr",
    "mirostat_tau": "--mirostat-ent",
    "n_batch": "-b",
    "n_chunks": "--chunks",
    "n_cpu_moe": "-ncmoe",
    "n_ctx": "-c",
    "n_depth": "-d",
    "n_expert_used": "--experts",
    "n_gen": "-n",
    "n_gpu_layers": "-ngl",
    "n_parallel": "-np",
    "n_prompt": "-p",
    "n_threads": "-t",
    "n_ubatch": "-ub",
    "offload_kqv": "-nkvo",
    "presence_penalty": "--presence-penalty",
    "process_output": "--process-output",
    "requantize": "--requantize",
    "repeat_last_n": "--repeat-last-n",
    "repeat_penalty": "--repeat-penalty",
    "response_format": "-j",
    "special": "--parse-special",
    "split_size": "--split-size",
    "temperature": "--temp",
    "target_bpw": "--target-bpw",
    "target_size": "--target-size",
    "tensor_split": "-ts",
    "top_k": "--top-k",
    "top_logprobs": "--logprobs",
    "top_n_sigma": "--top-n-sigma",
    "top_p": "--top-p",
    "typical_p": "--typical",
    "vision_type": "--vision-type",
    "when_full": "--when-full",
    "xtc_probability": "--xtc-probability",
    "xtc_threshold": "--xtc-threshold",
}
# These are words of English too: settings where a value follows, as in ``force=True``.
_FLAG_OF_ASSIGNED = {
    "adapters": "--lora",
    "base": "--base",
    "check": "--check",
    "devices": "-dev",
    "directory": "--dir",
    "drafts": "--drafts",
    "fit": "--fit",
    "force": "--force",
    "gpus": "--gpu",
    "imatrix": "--imatrix",
    "layers": "--layers",
    "mirostat": "--mirostat",
    "outtype": "--outtype",
    "overrides": "-ot",
    "projector": "--mmproj",
    "ram": "--ram",
    "recipe": "--recipe",
    "revision": "--revision",
    "seed": "--seed",
    "special": "--special",
    "stop": "--stop",
    "text": "--vision-only",
    "threads": "-t",
    "types": "--type",
    "vision": "--no-vision",
    "vram": "--vram",
    "workers": "--workers",
}
_ANY = "|".join(FLAG_OF)
_ASSIGNED = "|".join(_FLAG_OF_ASSIGNED)
_VALUE = r"[\"']?([\w+-]+(?:\.[\w-]+)*)[\"']?"  # a full stop behind it is the sentence's
_SETTING = re.compile(
    rf"(?<![\w.`])(?:({_ANY})(?:={_VALUE})?|({_ASSIGNED})={_VALUE})"
    r"(?![\w=]| \(-)"  # the flag is there already
)
_KV_PAIR = re.compile(r"(?<![\w.`])kv_type=\([\"'](\w+)[\"'], [\"'](\w+)[\"']\)(?! \(-)")


def with_flags(text: str) -> str:
    """`text` with the flag behind each setting: ``n_ctx (-c)``, ``force=True (--force)``."""
    text = _KV_PAIR.sub(r"\g<0> (-ctk \1 -ctv \2)", text)
    return _SETTING.sub(_with_flag, text)


def _with_flag(match: re.Match[str]) -> str:
    setting, value = match[1] or match[3], match[2] or match[4]
    flag = FLAG_OF.get(setting) or _FLAG_OF_ASSIGNED[setting]
    if value is None or value in ("True", "False"):
        return f"{match[0]} ({flag})"
    if setting == "kv_type":  # keys and values alike
        return f"{match[0]} (-ctk {value} -ctv {value})"
    return f"{match[0]} ({flag} {value})"
