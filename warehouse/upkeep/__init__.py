"""Upkeep of a lake: moments of its history, the way back to one, fewer files, and proof that all are there."""
