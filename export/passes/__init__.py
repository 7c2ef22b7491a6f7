"""Passes that bring any inference graph into the normal form of a network graph, one a file."""
