"""Images on a medium, and how they become what a step is fed."""
