"""Mine the significant words of a corpus's captions with a Ray Data job. Any number of runs can share them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow as pa

from cluster.connection import connected_ray
from jobs.launch import lease
from pipeline import storage
from pipeline.offline.word_counts import count_captions, read_captions
from pipeline.text.config import UNRANKED
from pipeline.text.significance import SignificanceConfig, WordCounts, rank_words
from pipeline.text.tagging import best_tagger, tagger_version
from pipeline.text.tokenizer import read_pieces

log = logging.getLogger(__name__)

VERSION = 1
"""Increase it when the same input gives other words."""
WORDS, FAMILIES, COUNTS, SUMMARY = "significant_words.json", "word_families.json", "word_counts.json", "mine_words.json"


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Which captions are counted, for which vocabulary, and where the words are written."""

    captions: tuple[str, ...]
    """Manifests, and files with a JSON object with `caption` per line: local paths or s3:// URLs."""
    vocabulary: str
    """Folder or file of a vocabulary: vocab.txt, or the tokenizer.json of any fast tokenizer."""
    out: str
    """Folder or bucket for the words."""
    split: str | None = "train"
    """Split whose captions are counted, where rows or lines name one; None counts all."""
    tagger: Literal["auto", "spacy", "lexicon"] = "auto"
    """Tagger of nouns, verbs and adjectives: `spacy`, or `lexicon`, the built-in dictionary. `auto` takes spaCy if it
    and the model are installed here."""
    spacy_model: str = "en_core_web_sm"
    """Package of a spaCy model, also under a longer name, or its folder; every node needs it."""
    stop_words: tuple[str, ...] = ()
    """Files with words that are never to be significant, one per line: stop words, jargon of a corpus."""
    significance: SignificanceConfig = field(default_factory=SignificanceConfig)
    force: bool = False
    """Count again, even if nothing changed."""

    def __post_init__(self) -> None:
        if not self.captions:
            raise ValueError("captions must name at least one manifest or file of captions, got none")


@dataclass(frozen=True, kw_only=True)
class MineResult:
    """The result of `mine_words`, of this or an earlier pass."""

    words_path: str
    tagger: str
    """Program, model and versions that tagged the parts of speech."""
    num_captions: int
    num_words: int
    """Words of the vocabulary that have a rank."""
    top_words: tuple[str, ...]
    """The ten most significant words."""
    seconds: float


def mine_words(config: MineConfig) -> MineResult:
    """Write the significant words of a corpus below `config.out`.

    Do nothing if the input (settings, captions, vocabulary, versions of the tagger) is unchanged. If only the
    vocabulary or the ranking changed, the captions are not tagged again. ValueError if no word is significant, or while
    another job writes to the same folder.
    """
    out = storage.absolute(config.out)
    storage.check_writable(out)
    with lease.held(out) as held:
        return _mine_words(config, out, held)


def _mine_words(config: MineConfig, out: str, held: lease.Lease) -> MineResult:
    started = time.monotonic()
    tagger = best_tagger(config.spacy_model) if config.tagger == "auto" else config.tagger
    version = tagger_version(tagger, config.spacy_model)
    pieces = read_pieces(storage.absolute(config.vocabulary))
    abandoned = (*config.significance.abandoned, *stop_words(config.stop_words))
    significance = dataclasses.replace(config.significance, abandoned=abandoned)
    counted = _digest([VERSION, version, significance.lower_case], _captions(config))
    inputs = _digest([counted, dataclasses.asdict(significance), pieces])
    before = {} if config.force else _finished(out)
    if before.get("inputs") == inputs:
        log.info("nothing to do: %s was made from the same input; --force makes it again", storage.join(out, WORDS))
        return _mined(before)
    if before.get("counted") == counted:
        counts = WordCounts.from_json(storage.read_bytes(storage.join(out, COUNTS)).decode())
    else:
        lower_case = significance.lower_case
        with connected_ray():
            counts = count_captions(
                _captions(config), tagger=tagger, spacy_model=config.spacy_model, lower_case=lower_case
            )
    held.check()
    storage.remove(storage.join(out, SUMMARY))  # it would mark a half-written result as finished
    ranked = _write(counts, pieces, significance, out)
    if not ranked:
        raise ValueError(
            f"no noun, verb or adjective of the {counts.num_captions} captions is a whole word of {config.vocabulary}: "
            "look at both; a cased vocabulary wants --significance.no-lower-case"
        )
    summary = {
        "inputs": inputs,
        "counted": counted,
        "config": dataclasses.asdict(dataclasses.replace(config, significance=significance)),
        "words_path": storage.join(out, WORDS),
        "tagger": version,
        "num_captions": counts.num_captions,
        "num_words": len(ranked),
        "top_words": ranked[:10],
        "seconds": round(time.monotonic() - started, 1),
    }
    storage.write_bytes_atomic(storage.join(out, SUMMARY), json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return _mined(summary)


def stop_words(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of files with one word per line; skip empty lines. ValueError for a line of several words."""
    lines = [line.strip() for path in paths for line in storage.read_bytes(path).decode("utf-8-sig").split("\n")]
    wrong = next((line for line in lines if len(line.split()) > 1), None)
    if wrong is not None:
        raise ValueError(f"a file of stop words has one word per line, got {wrong[:60]!r}")
    return tuple(dict.fromkeys(line for line in lines if line))


def describe(result: MineResult) -> str:
    """Return a summary for the terminal."""
    return (
        f"captions  {result.num_captions}\ntagger    {result.tagger}\nwords     {result.num_words}: "
        f"{', '.join(result.top_words)} …\ntable     {result.words_path}\nseconds   {result.seconds:.1f}"
    )


def _write(counts: WordCounts, pieces: list[str], config: SignificanceConfig, out: str) -> list[str]:
    """Write counts, families and words; return the ranked words, best first."""
    table = rank_words(counts, pieces, config)
    storage.write_bytes_atomic(storage.join(out, COUNTS), counts.to_json().encode())
    storage.write_bytes_atomic(storage.join(out, FAMILIES), table.families_json().encode())
    table.save(storage.join(out, WORDS))
    return [table.words[index] for index in table.significant_ids(UNRANKED - 1)]


def _captions(config: MineConfig) -> Iterator[pa.StringArray]:
    """Yield the captions of all sources in batches."""
    for source in config.captions:
        yield from read_captions(storage.absolute(source), config.split)


def _digest(values: Any, captions: Iterable[pa.StringArray] = ()) -> str:
    """Return a hash (hex digits) of the values and captions."""
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16)
    for batch in captions:
        digest.update(pa.record_batch([batch], ["captions"]).serialize())
    return digest.hexdigest()


def _finished(out: str) -> dict[str, Any]:
    """Return the summary in `out`; empty unless all files exist."""
    paths = [storage.join(out, name) for name in (WORDS, FAMILIES, COUNTS, SUMMARY)]
    return json.loads(storage.read_bytes(paths[-1])) if all(map(storage.exists, paths)) else {}


def _mined(summary: dict[str, Any]) -> MineResult:
    known: dict[str, Any] = {attribute.name: summary[attribute.name] for attribute in dataclasses.fields(MineResult)}
    known["top_words"] = tuple(known["top_words"])
    return MineResult(**known)
