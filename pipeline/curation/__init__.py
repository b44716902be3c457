"""Raw video to a corpus: shots of long videos, captions that an endpoint writes, measures of clips to filter by.

May import `pipeline.corpus`, `pipeline.decode`, `pipeline.offline`, `pipeline.records`, `pipeline.redaction` and
`pipeline.storage`.
"""
