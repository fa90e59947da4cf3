"""Run Meta's Llama 4 family offline: convert its safetensors to GGUF, and talk to it.

    >>> import llama4_edge
    >>> llama4_edge.convert("Llama-4-Scout-17B-16E-Instruct", "scout-int4.gguf", recipe="int4")
    >>> with llama4_edge.Model("scout-int4.gguf") as model:
    ...     print(model.chat([{"role": "user", "content": "Hello!"}]).text)
"""

from __future__ import annotations

__version__ = "0.1.0"
