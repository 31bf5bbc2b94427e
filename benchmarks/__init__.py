"""Measurements against others' tools at their best settings. Each module prints one JSON line last."""
