"""Detect the language of a caption by its script, else by the most frequent words of captions. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

SCRIPTS: Mapping[str, str] = MappingProxyType(
    {
        **{"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CYRILLIC": "ru", "ARABIC": "ar"},
        **{"DEVANAGARI": "hi", "BENGALI": "bn", "TAMIL": "ta", "THAI": "th", "GREEK": "el", "HEBREW": "he"},
    }
)
"""First word of a letter's Unicode name → language that it is taken for."""
FREQUENT_WORDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        language: frozenset(words.split())
        for language, words in {
            "en": "the a an is are was and of in on with to his her their its while from at by for it that two "
            "woman people person",
            "de": "der die das ein eine einen einem einer und ist sind mit auf im am in dem den von zu vor seine ihre "
            "während nicht zwei mann frau",
            "fr": "le la les un une des et est sont dans sur avec de du au aux elle il qui son sa ses pendant en deux "
            "homme femme",
            "es": "el la los las un una y es está en con de del al se su sus mientras por para que dos hombre mujer",
            "it": "il lo la gli un una uno e è sono nel nella sul sulla con di del della al mentre per che si due uomo "
            "donna",
            "pt": "o a os as um uma e é está no na em com de do da ao que seu sua enquanto por para dois duas homem "
            "mulher",
            "nl": "de het een en is zijn op met van in aan naar haar terwijl voor twee vrouw",
            "sv": "en ett och är på med av i som det den sin till för medan två kvinna",
            "pl": "i w na z się jest są do przez jego jej który dwa podczas nad pod mężczyzna kobieta",
            "tr": "bir ve ile bu için üzerinde iki olan ederken adam kadın",
            "vi": "một là và của trong trên với đang người hai chiếc",
            "id": "seorang sebuah dan yang di dengan sedang untuk dari pada dua ke",
        }.items()
    }
)
LANGUAGES = tuple(sorted({*FREQUENT_WORDS, *SCRIPTS.values()}))


def language_of(text: str) -> str | None:
    """Detect the language of a text as an ISO 639-1 code; None if it is undecided."""
    letters = [unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha()]
    scripts = Counter(SCRIPTS[name] for name in letters if name in SCRIPTS)
    if 2 * scripts.total() > len(letters):
        return "ja" if "ja" in scripts else scripts.most_common(1)[0][0]
    words = re.findall(r"[^\W\d_]+", text.lower())
    hits: Counter[str] = Counter()
    for word in words:
        languages = [language for language, frequent in FREQUENT_WORDS.items() if word in frequent]
        hits.update(dict.fromkeys(languages, 1 / max(1, len(languages))))  # words of fewer languages weigh more
    ranked = hits.most_common(2)
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def share_in(language: str, captions: Iterable[str]) -> float | None:
    """Return the share of captions in a language among those whose language is detected; None if there is none."""
    languages = [code for caption in captions if (code := language_of(caption))]
    return sum(code == language for code in languages) / len(languages) if languages else None
