"""llama.cpp, driven: token ids in, logits and token ids out."""
