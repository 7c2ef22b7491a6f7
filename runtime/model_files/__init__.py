"""A run's parameters become a model file, on the board: with the standard library alone."""
