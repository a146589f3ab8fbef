"""The operating system, the C library and the terminal."""
