"""Ray Data passes over a whole corpus before training: probe clips, pack shards, count words.

May import `pipeline.corpus`, `pipeline.decode`, `pipeline.text`, `pipeline.records` and `pipeline.storage`.
"""
