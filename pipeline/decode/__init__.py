"""Encoded bytes to frames: which frames of a clip, by which decoder, in which isolated process.

May import `pipeline.corpus`, `pipeline.records` and `pipeline.storage`.
"""
