# Included by llama.cpp's own project(): its `common` library and its tools are for its programs, and
# nothing here loads them. llama-cpp-python forces the option into CMake's cache, where a normal
# variable hides it. It saves half of the compiler's time.
set(LLAMA_BUILD_COMMON OFF)
