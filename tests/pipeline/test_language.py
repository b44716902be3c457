"""Languages of captions whose language is known."""

from __future__ import annotations

import pytest

from pipeline.curation.language import LANGUAGES, language_of, share_in

CAPTIONS = {
    "en": ("A man is playing the guitar on a stage.", "two dogs run across the field", "the cook stirs a pot of soup"),
    "de": (
        "Ein Mann spielt auf der Bühne Gitarre.",
        "Zwei Hunde laufen über das Feld",
        "Eine Frau mit einem Hut tanzt",
    ),
    "fr": (
        "Un homme joue de la guitare sur scène.",
        "Deux chiens courent dans le champ",
        "Une femme danse sous la pluie",
    ),
    "es": (
        "Un hombre toca la guitarra en el escenario.",
        "Dos perros corren por el campo",
        "La mujer baila con su hija",
    ),
    "it": ("Un uomo suona la chitarra sul palco.", "Due cani corrono nel campo", "Una donna balla con la figlia"),
    "pt": ("Um homem toca guitarra no palco.", "Dois cães correm pelo campo com uma bola", "A mulher dança na chuva"),
    "nl": ("Een man speelt gitaar op het podium.", "Twee honden rennen over het veld", "Een vrouw danst in de regen"),
    "sv": ("En man spelar gitarr på scenen.", "Två hundar springer över ett fält", "En kvinna dansar i regnet"),
    "pl": ("Mężczyzna gra na gitarze na scenie.", "Dwa psy biegną przez pole", "Kobieta tańczy z córką w deszczu"),
    "tr": ("Bir adam sahnede gitar çalıyor.", "İki köpek ve bir kedi koşuyor", "Kadın kızı ile dans ediyor"),
    "vi": ("Một người đàn ông đang chơi ghi-ta trên sân khấu.", "Hai con chó chạy trong cánh đồng"),
    "id": ("Seorang pria sedang bermain gitar di panggung.", "Dua anjing berlari di lapangan"),
    "zh": ("一个男人在舞台上弹吉他。", "两只狗跑过田野"),
    "ja": ("男性がステージでギターを弾いている。", "二匹の犬が走る"),
    "ko": ("한 남자가 무대에서 기타를 치고 있다.",),
    "ru": ("Мужчина играет на гитаре на сцене.",),
    "ar": ("رجل يعزف على الجيتار على المسرح.",),
    "hi": ("एक आदमी मंच पर गिटार बजा रहा है।",),
    "el": ("Ένας άντρας παίζει κιθάρα στη σκηνή.",),
    "he": ("גבר מנגן בגיטרה על הבמה.",),
    "th": ("ชายคนหนึ่งกำลังเล่นกีตาร์บนเวที",),
}


@pytest.mark.parametrize(("language", "caption"), [(name, text) for name, texts in CAPTIONS.items() for text in texts])
def test_the_language_of_a_caption_is_told(language: str, caption: str) -> None:
    assert language_of(caption) == language
    assert language in LANGUAGES


@pytest.mark.parametrize("text", ["", "1080p 60fps", "dog runs fast", "IMG_2034.MOV", "👍👍"])
def test_what_no_word_tells_has_no_language(text: str) -> None:
    assert language_of(text) is None


def test_shares_are_those_of_the_captions_that_tell() -> None:
    captions = [CAPTIONS["en"][0], CAPTIONS["de"][0], "dog runs fast"]
    assert share_in("en", captions) == share_in("de", captions) == 0.5
    assert share_in("en", ["dog runs fast"]) is None
