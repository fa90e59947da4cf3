// Calls a function of llama.cpp's that throws C++ exceptions, which nothing but C++ can catch.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>

extern "C" {

// Calls `function`; returns 0, or 1 where it threw and then writes why to `text`, of `size` bytes.
int32_t llama4_edge_guarded(void (*function)(void *), void *argument, char *text, size_t size) {
    try {
        function(argument);
        return 0;
    } catch (const std::exception &error) {
        std::snprintf(text, size, "%s", error.what());
    } catch (...) {
        std::snprintf(text, size, "an unknown exception");
    }
    return 1;
}

} // extern "C"
