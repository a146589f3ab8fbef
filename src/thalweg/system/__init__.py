"""The operating system, the C library and the terminal. Imports nothing of thalweg."""
