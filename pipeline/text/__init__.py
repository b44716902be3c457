"""Captions to tokens: WordPiece, tags, the table of significant words, and masking (MLM, MSSM).

May import `pipeline.records` and `pipeline.storage`.
"""
