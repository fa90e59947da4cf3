"""Speed, memory and quality beside llama.cpp's own tools; results are in RESULTS.md."""
