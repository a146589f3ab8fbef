"""The paper's efficiency study on any machine, and a comparison of two models on the user's own texts.

docs/architecture.md has a line for each file.
"""
