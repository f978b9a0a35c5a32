"""The node under faults, and whether it lost, doubled or mixed up anything. `__main__` says how to run it."""
