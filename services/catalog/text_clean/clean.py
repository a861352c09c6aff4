"""text/clean makes posts from the web readable, without taking away what carries sentiment.

Entities, markup, links, mentions, the sign of hashtags, control characters and surplus whitespace go.
Capitals, punctuation, emoticons, emoji, stretched words and negations stay: "NOT good!!! :(" passes unchanged.
Cleaning is idempotent for ordinary posts and its time grows linearly with the length of the text.
"""

import html
import re
import unicodedata

from algomesh import algorithm

_URL = re.compile(r"(?:https?://|www\.|\b(?:t\.co|bit\.ly|pic\.twitter\.com)/)[^\s<>\"]+", re.IGNORECASE)
_URL_TAIL = re.compile(r"[.,;:!?'\")\]]+$")
_LEFT_BY_URL = re.compile(r"\( +\)|\[ +\]")
_TAG = re.compile(
    r"</?(?:a|abbr|b|blockquote|br|code|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|s|small|span|strong|sub|sup|table"
    r"|tbody|td|th|tr|u|ul)(?:\s[^<>]{0,2000})?/?>",
    re.IGNORECASE,
)
_RETWEET = re.compile(r"^\s*RT\s+(?=@\w)")
_MENTION = re.compile(r"(?<![\w@./])@\w{1,50}:?")
_HASHTAG = re.compile(r"(?<![\w&#/])#(\w*[^\W\d_]\w*)")
_WORD_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "…": "...", "–": "-", "—": "-", "\u00a0": " "}
)
# A joiner and a variation selector are part of the emoji around them; every other invisible character is noise.
_PARTS_OF_EMOJI = frozenset("\u200d\ufe0f")


@algorithm("text/clean", version="1.0.0")
def clean(text: str) -> str:
    """Return `text` as one readable line; an empty string when nothing readable is in it."""
    text = unicodedata.normalize("NFC", repair_encoding(text))
    text = _TAG.sub(" ", unescape(text))
    text = _LEFT_BY_URL.sub(" ", _URL.sub(_without_link, text))
    text = _MENTION.sub(" ", _RETWEET.sub("", text))
    text = _HASHTAG.sub(lambda tag: readable_hashtag(tag[1]), text)
    text = "".join(map(_visible, text.translate(_PLAIN)))
    return " ".join(text.split())


def unescape(text: str) -> str:
    """Resolve HTML entities, also those that were escaped twice on their way here (`&amp;lt;3`)."""
    for _ in range(3):
        plain = html.unescape(text)
        if plain == text:
            break
        text = plain
    return text


def repair_encoding(text: str) -> str:
    """Repair UTF-8 that was read as Windows-1252 (`donâ€™t`); text that was read properly is left alone."""
    return _NOT_ASCII.sub(_reread, text)


def readable_hashtag(tag: str) -> str:
    """Split a hashtag (without its sign) into the words that its capitals and underscores show."""
    return " ".join(_WORD_BORDER.sub(" ", tag).replace("_", " ").split())


def _reread(run: re.Match[str]) -> str:
    """Read a run of characters again as UTF-8, if its bytes are UTF-8; by chance real text never is."""
    try:
        return b"".join(map(_byte, run[0])).decode("utf-8")
    except UnicodeError:
        return run[0]


def _byte(character: str) -> bytes:
    """Return the byte that a Windows-1252 reader has turned into `character`."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # five bytes that the code page leaves undefined


def _without_link(link: re.Match[str]) -> str:
    """Drop a link, but not the punctuation of the sentence that it ends."""
    tail = _URL_TAIL.search(link[0])
    return " " + tail[0] if tail else " "


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    if category in {"Cf", "Cs", "Co", "Cn"} and character not in _PARTS_OF_EMOJI:
        return ""
    return "" if character == "\ufffd" else character
