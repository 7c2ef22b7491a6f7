"""The classifier that came in, matched with the classes and images that are wanted of it."""
