"""Manifests, annotations and the media files that they name: what a corpus is, before anything is decoded.

May import `pipeline.nearest`, `pipeline.records`, `pipeline.redaction` and `pipeline.storage`.
"""
