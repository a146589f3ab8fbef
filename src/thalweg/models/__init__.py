"""Model families. One family, one readable file: config, layers, state, from top to bottom."""
