"""Raw video to a corpus: shots of long videos, captions from an endpoint, scores of clips for filtering.

May import `pipeline.corpus`, `pipeline.decode`, `pipeline.offline`, `pipeline.records`, `pipeline.redaction` and
`pipeline.storage`.
"""
