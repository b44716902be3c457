"""Near-duplicate clips: fingerprints of frames, candidate pairs, groups.

May import what `pipeline.offline` may, and `pipeline.offline`.
"""
