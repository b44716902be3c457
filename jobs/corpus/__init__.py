"""Jobs on a corpus: download, split, prepare, caption, filter, deduplicate, pack, mine words, make the embedded corpus.

May import `jobs.launch.lease`, `jobs.tracking.voice`, `cluster` and `pipeline`.
"""
