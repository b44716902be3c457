"""Jobs on a corpus: prepare, pack, deduplicate, count words, make the embedded one.

May import `jobs.launch.lease`, `jobs.tracking.voice`, `cluster` and `pipeline`.
"""
