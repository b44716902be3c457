"""Manifest rows to batches, in the order of the epoch plan: decode, collate, augment, each clip in its slot.

May import `pipeline.corpus`, `pipeline.decode`, `pipeline.text`, `pipeline.records` and `pipeline.storage`.
"""
