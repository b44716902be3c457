"""Count the words of a whole corpus on all CPUs of a cluster.

batches of captions ──distinct ones, in blocks──► tagger, on CPU workers ──counts──► summed ──► WordCounts
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa

from pipeline import storage
from pipeline.corpus.manifest import open_manifest
from pipeline.corpus.text_files import json_lines, read_text
from pipeline.offline.stages import split_into_blocks, stream_blocks
from pipeline.text.significance import CONTENT_POS, WordCounts, count_words
from pipeline.text.tagging import TaggerName, make_tagger

log = logging.getLogger(__name__)

CAPTIONS = "captions"
"""Stands in the column `pos` for counts of captions that contain the word, not of a part of speech."""
CAPTIONED_AT_ONCE = 2**19
"""Number of clips whose captions are in memory at a time."""
_COUNTS = pa.schema([("pos", pa.string()), ("word", pa.string()), ("count", pa.int64())])


def read_captions(source: str, split: str | None) -> Iterator[pa.StringArray]:
    """Yield the captions of one split (None: of all) of a manifest, in batches, or of a file of JSON lines with
    `caption`.

    A line belongs to the split that it names, or to every split if it names none. ValueError: there is no caption.
    """
    if source.endswith(".parquet") or storage.is_folder(source):
        listing = open_manifest(source)
        if split:
            listing.refuse_empty(split)
        captions = (rows["captions"].combine_chunks().flatten() for rows in listing.batches(CAPTIONED_AT_ONCE, split))
    else:
        captions = iter([pa.array(_captions_of_lines(source, split), pa.string())])
    num_captions = 0
    for batch in captions:
        num_captions += len(batch)
        yield batch
    if not num_captions:
        raise ValueError(f"{source} holds no caption" + (f" of the split {split!r}" if split else ""))


def count_captions(
    captions: Iterable[pa.StringArray], *, tagger: TaggerName, spacy_model: str, lower_case: bool
) -> WordCounts:
    """Return `count_words` of all captions, with one Ray Data job per array, which tags each distinct caption once."""
    count = partial(_count_block, tagger=tagger, spacy_model=spacy_model, lower_case=lower_case)
    totals = {pos: Counter[str]() for pos in (*CONTENT_POS, CAPTIONS)}
    num_captions = 0
    for batch in captions:
        distinct = pa.Table.from_struct_array(batch.value_counts())
        for part in stream_blocks(split_into_blocks(distinct, 256, 8192), count):
            for row in part.to_pylist():
                totals[row["pos"]][row["word"]] += row["count"]
        num_captions += len(batch)
        log.info("%d captions are counted", num_captions, extra={"is_progress": True})
    by_pos = {pos: dict(sorted(words.items())) for pos, words in totals.items()}  # blocks arrive in any order
    with_word = by_pos.pop(CAPTIONS)
    log.info("%d captions hold %d words", num_captions, len(with_word))
    return WordCounts(by_pos=by_pos, num_captions_with=with_word, num_captions=num_captions)


def _count_block(block: pa.Table, tagger: TaggerName, spacy_model: str, lower_case: bool) -> pa.Table:
    """Count the words of a block of captions (`values`) that occur `counts` times each; return `_COUNTS`."""
    times_of = dict(zip(block["values"].to_pylist(), block["counts"].to_pylist(), strict=True))
    counts = count_words(times_of, make_tagger(tagger, spacy_model), lower_case=lower_case)
    by_pos = {**counts.by_pos, CAPTIONS: counts.num_captions_with}
    rows = [{"pos": pos, "word": word, "count": by_pos[pos][word]} for pos in by_pos for word in by_pos[pos]]
    return pa.Table.from_pylist(rows, schema=_COUNTS)


def _captions_of_lines(source: str, split: str | None) -> Iterator[str]:
    for where, fields in json_lines(read_text(source), source):
        caption = fields.get("caption") if isinstance(fields, dict) else None
        if not isinstance(caption, str):
            line = json.dumps(fields, ensure_ascii=False)[:80]
            raise ValueError(f"{where}: needs an object with caption, a text, got {line!r}")
        if split is None or fields.get("split", split) == split:
            yield caption
