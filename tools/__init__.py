"""What stands beside the package: installing, building llama.cpp, locking versions, drawing docs.

Promises that what runs before anything is installed (`install`, `build_llama`, `progress`) needs
Python's standard library and pip alone.
"""
