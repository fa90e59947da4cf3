"""LoRA adapters as PEFT saves them: what each adds to which matrix of a Llama 4.

`adapter` opens one (a directory or a repository), `settings` reads its adapter_config.json,
`deltas` holds its tensors against the model's shapes, `base` finds these. From there `factors`
makes the two matrices that llama.cpp multiplies with, and `file` writes them.
"""
