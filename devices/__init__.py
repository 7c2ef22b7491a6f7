"""Boards: what six of them are as published, what this machine is, how hot it runs. Standard library only."""
