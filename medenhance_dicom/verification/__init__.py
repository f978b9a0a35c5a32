"""Verifying whole folders of what we made: which files are ours, and what state each is in."""
