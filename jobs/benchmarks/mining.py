"""Significant words mined from real captions with spaCy and with the built-in dictionary: overlap and speed.

The reference list holds the 2,000 most frequent words of spaCy's small English model over the same captions.
"""

from __future__ import annotations

import json
import time
from typing import Any

from jobs.benchmarks.support.fixtures import data_folder
from pipeline.offline.word_counts import read_captions
from pipeline.text.significance import SignificanceConfig, WordCounts, count_words, rank_words
from pipeline.text.tagging import TaggerName, make_tagger, tagger_version
from pipeline.text.tokenizer import read_pieces

NUM_WORDS = 2000
ABANDONED = ("be", "is", "was", "were", "are")
"""The published list for captions of COCO and Visual Genome."""
TAGGERS: dict[str, TaggerName] = {"": "spacy", "fallback_": "lexicon"}
CASES = {"": "raw", "_lower": "lower"}
"""Suffix of a figure's name → the reference list: of captions as written, or in lower case."""


def mining(
    data: str | None = None, num_captions: int | None = None, spacy_model: str = "en_core_web_sm"
) -> dict[str, Any]:
    """Return the overlap of the top 2,000 words with the reference, and captions per second of one core, for both
    taggers.

    `data`: by default the folder SNPS3_TEST_DATA. A subset of the captions only tests that the program runs; its
    overlap is meaningless.
    """
    folder = data_folder(data, "captions")
    (captions,) = read_captions(str(folder / "coco_captions_25k.jsonl"), None)
    captions = captions.to_pylist()[:num_captions]
    recorded = json.loads((folder / "significant_words_coco_spacy.json").read_text(encoding="utf-8"))
    vocabulary = read_pieces(str(folder / "bert-base-uncased-vocab.txt"))
    result: dict[str, Any] = {"num_captions": len(captions)}
    for start, name in TAGGERS.items():
        result[f"tagger/{name}"] = tagger_version(name, spacy_model)
        tagger, cpu_seconds, num_tagged = make_tagger(name, spacy_model), 0.0, 0
        count_words(captions[:100], tagger)  # warm up: the first use reads dictionaries and allocates memory
        for end, case in CASES.items():
            before = time.process_time()
            counts = count_words(captions, tagger, lower_case=case == "lower")
            cpu_seconds += time.process_time() - before
            num_tagged += len(captions)
            expected = {entry["word"] for entry in recorded[case][:NUM_WORDS]}
            common = expected & top_words(counts, vocabulary)
            result[f"{start}overlap_top{NUM_WORDS}{end}"] = len(common) / NUM_WORDS
        result[f"{start}captions_per_cpu_second"] = round(num_tagged / cpu_seconds)
    return result


def top_words(counts: WordCounts, vocabulary: list[str]) -> set[str]:
    """Return the most frequent words of a vocabulary, ties in alphabetical order."""
    table = rank_words(counts, vocabulary, SignificanceConfig(abandoned=ABANDONED))
    totals = dict(zip(table.words, table.total_counts.tolist(), strict=True))
    return set(sorted(totals, key=lambda word: (-totals[word], word))[:NUM_WORDS])
