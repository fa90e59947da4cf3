"""llama.cpp's C API: the only package, with ``workers``, that calls it."""
