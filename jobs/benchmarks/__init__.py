"""Measurements, one per file: `python jobs/benchmark.py NAME` prints one JSON object.

May import every room.
"""
