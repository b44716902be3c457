"""Manifest rows in the order of the epoch plan to batches: decode, collate, augment, each clip in its slot.

May import `pipeline.corpus`, `pipeline.decode`, `pipeline.text`, `pipeline.records` and `pipeline.storage`.
"""
