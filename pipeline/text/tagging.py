"""Tag parts of speech of caption words with spaCy, or without a model by a dictionary of inflections and some context.

The published lists were made with `spacy`. `lexicon` needs no model, so words can be counted offline and in tests;
`python jobs/benchmark.py mining` compares both with the published list.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

TaggedWord = tuple[str, str]
"""A word or punctuation mark as written, and its universal part of speech ("NOUN", "VERB", "ADJ" …)."""
Tagger = Callable[[Iterable[str]], Iterable[list[TaggedWord]]]
"""Maps captions to the tagged words of each, in order."""
TaggerName = Literal["spacy", "lexicon"]
CAPTIONS_AT_ONCE = 256
"""Batch size of spaCy's network."""
NOT_NEEDED = ("parser", "senter", "ner", "lemmatizer")
"""Disabled components of a spaCy model. The published counting kept the parser, from which spaCy knows whether "is" or
"has" is the main verb; without it such words are always auxiliaries, and so never significant."""


def all_lemmas(word: str) -> dict[str, tuple[str, ...]]:
    """Return the lemmas of a word by part of speech, as lemminflect knows them; none for an unknown word."""
    import lemminflect  # imports all of spaCy, which takes a second: only needed for counting words

    return lemminflect.getAllLemmas(word)


_WORDS_BY_POS = {
    "DET": "a an the this that these those each every some any no another both either neither all half such "
    "my your his her its our their whose which what",
    "PRON": "i you he she it we they me him us them mine yours hers ours theirs myself yourself himself herself itself "
    "ourselves themselves who whom someone something anyone anything everyone everything nobody nothing none one "
    "ones others there here each",
    "AUX": "am is are was were be been being isn aren wasn weren has have had having do does did don doesn didn "
    "can could will would shall should may might must cannot won ain ll ve re",
    "ADP": "of in on at by for with from into onto over under above below between behind beside besides beneath "
    "underneath near against along across through around about among amongst within without toward towards past "
    "off up down out inside outside upon during after before until till despite amid amidst beyond via per "
    "throughout opposite atop next front like",
    "CCONJ": "and or but nor yet & plus",
    "SCONJ": "while as if because although though when where since unless whether than how why",
    "PART": "to not n t s",
    "ADV": "then very too also just now again soon away together apart back forth forward forwards backward backwards "
    "upward upwards downward downwards sideways leftward leftwards rightward rightwards almost already always never "
    "ever often once twice still even only quite rather really so far later afterwards meanwhile maybe perhaps "
    "else instead somewhere everywhere first finally upside abroad ahead alone aside more most less least well",
    "NUM": "zero two three four five six seven eight nine ten eleven twelve thirteen twenty thirty forty fifty "
    "hundred thousand million dozen",
    "INTJ": "oh yes hey hello wow",
    # adjectives and nouns for which the dictionary has (also or only) another part of speech that is rare in captions
    "ADJ": "white black red blue yellow green brown gray grey pink purple small big large tiny huge little old young "
    "new tall long short full many several few same different other wooden open empty busy",
    "NOUN": "top home pan bar building parking dining clothing ceiling railing evening morning",
}
"""Part of speech → its words. If several list a word, the first one counts."""
_KNOWN = {word: pos for pos, words in reversed(_WORDS_BY_POS.items()) for word in words.split()}
_TO_BE = frozenset("am is are was were be been being isn aren wasn weren re".split())
_SINGULAR = frozenset("a an another each every one this".split())
_SUFFIXES = ((r".{2,}ly", "ADV"), (r".{2,}(ing|ed)", "VERB"), (r".{3,}(ous|ful|less|able|ible|ish|ive|ic)", "ADJ"))


def split_words(caption: str) -> list[str]:
    """Split a caption into words and punctuation marks, at the same places as BERT's tokeniser."""
    return re.findall(r"[^\W_]+|[^\w\s]", caption)


def lexicon_tagger(captions: Iterable[str]) -> Iterator[list[TaggedWord]]:
    """Tag captions without a model. Correct for most caption words, but no parser: see `_Sentence`."""
    for caption in captions:
        words = split_words(caption)
        yield list(zip(words, lexicon_tags(words), strict=True))


def lexicon_tags(words: list[str]) -> list[str]:
    """Return the universal part of speech of each word of one caption."""
    lowered = [word.lower() for word in words]
    return _Sentence(words=lowered, candidates=[_candidates(word) for word in lowered]).tagged()


def spacy_tagger(model: str) -> Tagger:
    """Return a tagger that runs a spaCy model (an installed package or a path), with spaCy's tokenisation.

    ValueError for a model that does not tag parts of speech or is not installed.
    """
    nlp = _spacy_pipeline(model)

    def tagged(captions: Iterable[str]) -> Iterator[list[TaggedWord]]:
        for document in nlp.pipe(captions, batch_size=CAPTIONS_AT_ONCE):
            yield [(token.text, token.pos_) for token in document]

    return tagged


def make_tagger(name: TaggerName, spacy_model: str) -> Tagger:
    """Return the tagger of this name; only `spacy` uses `spacy_model`."""
    return spacy_tagger(spacy_model) if name == "spacy" else lexicon_tagger


def best_tagger(spacy_model: str) -> TaggerName:
    """Return `spacy` if it and the model are installed; otherwise warn and return `lexicon`."""
    if importlib.util.find_spec("spacy") and (_model_package(spacy_model) or Path(spacy_model).is_dir()):
        return "spacy"
    logger.warning(
        "spaCy with the model %s is not installed: parts of speech come from the built-in dictionary, which counts a "
        "few words otherwise; --tagger lexicon asks for it without this warning",
        spacy_model,
    )
    return "lexicon"


def tagger_version(name: TaggerName, spacy_model: str) -> str:
    """Describe what the tags depend on: library, model and their versions."""
    if name == "lexicon":
        return f"built-in dictionary, lemminflect {importlib.metadata.version('lemminflect')}"
    meta = _spacy_pipeline(spacy_model).meta
    return f"spaCy {importlib.metadata.version('spacy')}, {meta['lang']}_{meta['name']} {meta['version']}"


@lru_cache(maxsize=1)
def _spacy_pipeline(model: str) -> Any:
    remedy = f"install both (pip install 'snps3-ray[spacy]', and the model {model}), or take --tagger lexicon"
    if not importlib.util.find_spec("spacy"):
        raise ValueError(f"spaCy is not installed: {remedy}")
    if package := _model_package(model):
        pipeline = importlib.import_module(package).load(exclude=NOT_NEEDED)
    elif Path(model).is_dir():
        pipeline = importlib.import_module("spacy").load(model, exclude=NOT_NEEDED)
    else:
        raise ValueError(f"there is no spaCy model {model!r}: {remedy}")
    if "tagger" not in pipeline.pipe_names and "morphologizer" not in pipeline.pipe_names:
        raise ValueError(f"the spaCy model {model!r} has no parts of speech: take one like en_core_web_sm")
    return pipeline


def _model_package(model: str) -> str | None:
    """Return the package of an installed spaCy model with this name or prefix."""
    packages = {point.name: point.value for point in importlib.metadata.entry_points(group="spacy_models")}
    return next((packages[name] for name in sorted(packages) if f"{name}_".startswith(f"{model}_")), None)


@lru_cache(maxsize=65536)
def _candidates(word: str) -> frozenset[str]:
    """Return the parts of speech that a lower-case word can have."""
    if not word[0].isalnum():
        return frozenset({"PUNCT"})
    if word[0].isdigit():
        return frozenset({"NUM"})
    if word in _KNOWN:
        return frozenset({_KNOWN[word]})
    known = frozenset(all_lemmas(word)) & {"NOUN", "VERB", "ADJ", "ADV"}
    if known:
        # the dictionary has some adverbs as something else: "slowly" as a noun, "quickly" as an adjective
        if "ADV" in known and word.endswith("ly"):
            return frozenset({"ADV"})
        return known | {"NOUN"} if known == {"ADJ", "VERB"} else known
    return frozenset({next((pos for pattern, pos in _SUFFIXES if re.fullmatch(pattern, word)), "NOUN")})


@lru_cache(maxsize=65536)
def _verb_form(word: str) -> str:
    """Return the verb form of a word: "base", "third", "ing", "past"; empty if it is not a verb."""
    lemmas = all_lemmas(word).get("VERB", ())
    if not lemmas:
        return {"ing": "ing", "ed": "past"}.get(word[-3:] if word.endswith("ing") else word[-2:], "")
    if word.endswith("ing") and lemmas[0] != word:
        return "ing"
    if word in lemmas:
        return "base"
    return "third" if word.endswith("s") else "past"


def _is_plural(word: str) -> bool:
    lemmas = all_lemmas(word).get("NOUN", ())
    return bool(lemmas) and word not in lemmas


@dataclass
class _Sentence:
    """State of tagging one caption from left to right.

    The tag of an ambiguous word depends on the word before it, on whether a noun can follow, and on whether
    the clause still lacks its verb.
    """

    words: list[str]
    candidates: list[frozenset[str]]
    tags: list[str] = field(default_factory=list)
    is_singular: bool = False
    """The current noun phrase began with "a" or the like, so a word in -s does not belong to it."""
    has_verb: bool = False
    """The current clause has its verb."""

    def tagged(self) -> list[str]:
        for index in range(len(self.words)):
            tag = self._tag(index)
            self._remember(index, tag)
            self.tags.append(tag)
        return self.tags

    def _remember(self, index: int, tag: str) -> None:
        if tag in ("PUNCT", "CCONJ", "SCONJ") or (tag == "PRON" and self.words[index] != "there"):
            self.has_verb = False
        elif tag == "AUX" or (tag == "VERB" and _verb_form(self.words[index]) in ("third", "base", "past")):
            self.has_verb = True
        if tag in ("DET", "NUM", "PRON", "ADP", "PUNCT", "CCONJ", "SCONJ"):
            self.is_singular = self.words[index] in _SINGULAR

    def _tag(self, index: int) -> str:
        word, can = self.words[index], self.candidates[index]
        previous = self.tags[index - 1] if index else "PUNCT"
        if word in ("that", "which") and previous == "NOUN":
            return "PRON"
        if word == "front" and index + 1 < len(self.words) and self.words[index + 1] != "of":
            return "ADJ"
        if len(can) == 1:
            return next(iter(can))
        match previous:
            case "PRON" | "AUX" | "PART":
                return self._after_subject_or_auxiliary(index)
            case "DET" | "ADJ" | "NUM":
                return self._inside_noun_phrase(index)
            case "NOUN":
                return self._after_noun(index)
            case "CCONJ" if index > 1 and self.tags[index - 2] in can:
                return self.tags[index - 2]
            case _:
                return self._elsewhere(index, previous)

    def _after_subject_or_auxiliary(self, index: int) -> str:
        can, form, before = self.candidates[index], _verb_form(self.words[index]), self.words[index - 1]
        if before in _TO_BE:
            return self._first(can, ("VERB", "ADJ") if form in ("ing", "past") else ("ADJ", "NOUN"))
        is_preposition = before == "to" and (form != "base" or (index > 1 and self.tags[index - 2] in ("ADP", "ADV")))
        if is_preposition or before == "s":
            return self._inside_noun_phrase(index)
        return self._first(can, ("VERB", "ADJ", "NOUN"))

    def _inside_noun_phrase(self, index: int) -> str:
        can, form, noun_follows = self.candidates[index], _verb_form(self.words[index]), self._noun_can_follow(index)
        if noun_follows and "ADJ" in can and form != "ing":
            return "ADJ"
        if form in ("ing", "past") and noun_follows:
            return self._first(can, ("VERB", "ADJ", "NOUN"))
        if form == "third" and self.tags[index - 1] == "ADJ" and self.is_singular:
            return "VERB"
        return self._first(can, ("NOUN", "ADJ", "VERB"))

    def _after_noun(self, index: int) -> str:
        can, form = self.candidates[index], _verb_form(self.words[index])
        if "VERB" in can:
            if form in ("ing", "past") or (form == "third" and self._clause_wants_verb_in_s(index)):
                return "VERB"
            if form == "base" and _is_plural(self.words[index - 1]) and not self.has_verb:
                return "VERB"
        return self._first(can, ("NOUN", "ADV", "ADJ", "VERB"))

    def _elsewhere(self, index: int, previous: str) -> str:
        can, form, noun_follows = self.candidates[index], _verb_form(self.words[index]), self._noun_can_follow(index)
        if "VERB" in can and form in ("ing", "past") and not (previous == "ADP" and "NOUN" in can and not noun_follows):
            return "ADJ" if previous == "ADP" and noun_follows and "ADJ" in can else "VERB"
        if previous == "ADV" and "VERB" in can and not self.has_verb and not noun_follows:
            return "VERB"
        if noun_follows and "ADJ" in can:
            return "ADJ"
        return self._first(can, ("ADV", "NOUN", "ADJ") if previous == "VERB" else ("NOUN", "ADJ", "ADV"))

    def _noun_can_follow(self, index: int) -> bool:
        after = index + 1
        if after >= len(self.words) or not self.candidates[after] & {"NOUN", "ADJ"}:
            return False
        form = _verb_form(self.words[after])
        if form == "third" and "VERB" in self.candidates[after]:
            return not self._clause_wants_verb_in_s(after)
        return not (form == "ing" and "VERB" in self.candidates[after])

    def _clause_wants_verb_in_s(self, index: int) -> bool:
        """Return whether the word in -s at `index` is more likely the clause's verb than a plural."""
        return self.is_singular or (not self.has_verb and not self._clear_verb_follows(index))

    def _clear_verb_follows(self, index: int) -> bool:
        for after in range(index + 1, len(self.words)):
            can = self.candidates[after]
            if can & {"PUNCT", "CCONJ", "SCONJ", "PRON"}:
                return False
            if can <= {"AUX", "VERB"} or ("VERB" in can and _verb_form(self.words[after]) == "ing"):
                return True
        return False

    @staticmethod
    def _first(can: frozenset[str], preferred: tuple[str, ...]) -> str:
        return next((pos for pos in (*preferred, "NOUN", "VERB", "ADJ", "ADV") if pos in can), "NOUN")
