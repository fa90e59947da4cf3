"""How fast a model is on this machine: `speed` as llama-bench measures it, on a model at hand or on
a `synthetic` one."""
