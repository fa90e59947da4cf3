"""What `make` runs before and beside the package: installing, building llama.cpp, locking versions.

Promises to need nothing but Python's standard library and pip. Knows nothing of the package.
"""
