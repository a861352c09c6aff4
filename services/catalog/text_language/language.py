"""text/language says which language a text is written in, by py3langid (Lui & Baldwin, 2012; BSD licence).

Its model of byte sequences comes inside its package. Of the 140 languages there, those are asked for that are the
main language of some country or region, since the others cost short posts more in confusion than they bring.
"""

import msgspec
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from algomesh import algorithm

UNKNOWN = "und"
LANGUAGES = (
    "af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko "
    "ku ky lo lt lv mg mk ml mn mr ms my ne nl nn no or pa pl ps pt ro ru rw si sk sl so sq sr sv sw ta te tg th tk tl "
    "tr uk ur uz vi xh yo yue zh zu"
)
# Below this the most likely language is wrong more often than right.
_LEAST_CONFIDENCE = 0.2
_DIGITS = 4
# What a language is shows in its first pages.
_READ_CHARACTERS = 16_384


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """The language of a text."""

    language: str
    """ISO 639 code of two or three letters; `und` where it cannot be told."""
    confidence: float
    """From 0 to 1: the probability of the most likely language among those known."""


@algorithm("text/language", version="1.0.0")
class IdentifyLanguage:
    """Identifies the language of a text."""

    def load(self) -> None:
        """Unpack the model."""
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._identifier.set_languages(LANGUAGES.split())

    def apply(self, text: str) -> Language:
        """Return the language of `text`; what has no letters in it has none."""
        text = text[:_READ_CHARACTERS]
        if not any(map(str.isalpha, text)):
            return Language(language=UNKNOWN, confidence=0.0)
        language, confidence = self._identifier.classify(text)
        sure = confidence >= _LEAST_CONFIDENCE
        return Language(language=language if sure else UNKNOWN, confidence=round(float(confidence), _DIGITS))
