"""Near-duplicate clips: fingerprints of frames and sound, candidate pairs, groups.

May import what `pipeline.offline` may, and `pipeline.offline`.
"""
