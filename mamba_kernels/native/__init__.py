"""The compiled library: its C++ in `src`, `build` that makes it and `library` that loads it."""
