"""How fast instances are received, and what it costs. `__main__` says how to run it."""
