"""Forms of a text in which hidden instructions show: without marks, look-alikes, gaps between letters, and encodings."""

from __future__ import annotations

import base64
import binascii
import codecs
import functools
import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator

# Letters of other scripts that look like Latin ones, as far as compatibility normalisation leaves them apart.
_LOOK_ALIKES = {
    **dict(zip("авеһіїјкмнорстухѕԁԛԝгьӏѵпґє", "abehiijkmhopctyxsdqwrblvnre", strict=True)),
    **dict(zip("αβεηικνορτυχγωσϲϳ", "abenikvoptuxywocj", strict=True)),
    **dict(zip("օսհոցազքյ", "ouhngwqpj", strict=True)),
    **dict(zip("ıɩłøđħŧɑɡƅɗɦɠʀɪɴʏʟʙʜɢɛ", "iilodhtagbdhgrinylbhge", strict=True)),
}
_NAMED = re.compile(
    r"(?:LATIN LETTER SMALL CAPITAL|NEGATIVE (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER|SQUARED LATIN CAPITAL LETTER|"
    r"REGIONAL INDICATOR SYMBOL LETTER|TAG LATIN (?:SMALL|CAPITAL) LETTER) ([A-Z])"
)


def _table() -> dict[int, str]:
    table = {ord(letter): latin for letter, latin in _LOOK_ALIKES.items()}
    for first, last in ((0x1D00, 0x1D2B), (0x1F130, 0x1F190), (0x1F1E6, 0x1F200), (0xE0041, 0xE007B)):
        for code in range(first, last):
            if named := _NAMED.fullmatch(unicodedata.name(chr(code), "")):
                table[code] = named.group(1).lower()
    return table


_LATIN = _table()
_TAGS = {code: chr(code - 0xE0000) for code in range(0xE0020, 0xE007F)}
_QUOTES = str.maketrans("’‘ʼ´`“”«»„–—‑…", "'''''\"\"\"\"\"---.")
# What stands between the words of a sentence without changing what they say.
_BETWEEN = str.maketrans(dict.fromkeys('_*"~|\\/<>()[]{}#=+-', " "))
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = str.maketrans("013457@$", "oieastas")
_MIXED = re.compile(r"(?=[^a-z]*[a-z])[a-z013457@$]{3,}")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:\\x|0x)?[0-9A-Fa-f]{2}[\s:,]?){16,}")
_ENTITIES = re.compile(r"(?:&#x?[0-9A-Fa-f]{2,6};\s?){3,}")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2}[^\s%]{0,40}){3,}")
_ESCAPES = re.compile(r"(?:\\u[0-9A-Fa-f]{4}\s?){3,}")

# Signs that show nothing and carry data: tag characters that are no flag, runs of selectors and of characters without width.
SMUGGLED = re.compile(
    "(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0001\U000e0020-\U000e007f]+"
    "|[\U000e0100-\U000e01ef]{3,}|[\u200b-\u200f\u2060-\u2064\ufeff\u180e\u00ad]{8,}"
)


def lines(text: str) -> str:
    """In small letters, with plain quotes, single spaces and no empty lines."""
    lower = text.lower() if text.isascii() else text.lower().translate(_QUOTES)
    return "\n".join(line for line in (" ".join(line.split()) for line in lower.splitlines()) if line)


def words(text: str) -> str:
    """`lines` on one line, with only sentence marks between the words."""
    return " ".join(text.translate(_BETWEEN).split())


def folded(text: str) -> str:
    """Without accents, signs that have no width, and differences of width, style and case. Scripts stay as they are."""
    bare = _unseen().sub("", unicodedata.normalize("NFKD", text))
    return lines(unicodedata.normalize("NFKC", bare).casefold())


@functools.cache
def _unseen() -> re.Pattern[str]:
    """One of the marks that stand on letters, or of the signs that only format."""
    codes = [code for code in range(0x80, 0xE0200) if unicodedata.category(chr(code)) in ("Mn", "Me", "Cf")]
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if before != code - 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if after != code + 1]
    return re.compile("[" + "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True)) + "]+")


def latin(text: str) -> str:
    """A folded text with Latin letters in place of those that look like them."""
    return text if text.isascii() else text.translate(_LATIN)


def squeezed(text: str) -> str:
    """Letters alone: gaps, marks and digits between them are gone."""
    return "".join(_LETTERS.findall(text))


def without_digits(text: str) -> str | None:
    """The words of a text, "1gn0r3" with letters for its digits; None where fewer than two are written so."""
    said, count = [], 0
    for word in text.split():
        if not word.isalpha() and _MIXED.fullmatch(bare := word.strip(".,;:!?\"'()")) and not bare.isalpha():
            word, count = word.translate(_DIGITS), count + 1
        said.append(word)
    return " ".join(said) if count >= 2 else None


def smuggled(text: str) -> str:
    """What tag characters spell."""
    return "".join(letter for letter in text if 0xE0020 <= ord(letter) < 0xE007F).translate(_TAGS)


def turned(text: str) -> Iterator[tuple[str, str]]:
    """Squeezed texts read backwards, or moved by thirteen letters, where they name an override that way."""
    if any(word in text for word in ("erongi", "dragersid", "tegrof")):
        yield "backwards", text[::-1]
    if any(word in text for word in ("vtaber", "qvfertneq", "sbetrg")):
        yield "rot13", codecs.encode(text, "rot13")


def decoded(text: str) -> Iterator[tuple[str, str]]:
    """(encoding, text): each piece that is a readable text in base64 or hex, and the whole text where signs are escaped."""
    for match in _BASE64.finditer(text):
        blob = match.group().rstrip("=").translate(str.maketrans("-_", "+/"))
        try:
            yield from _readable("base64", base64.b64decode(blob[: len(blob) - (len(blob) % 4 == 1)] + "=" * (-len(blob) % 4)))
        except binascii.Error:
            continue
    for match in _HEX.finditer(text):
        digits = re.sub(r"\\x|0x|[\s:,]", "", match.group())
        yield from _readable("hex", bytes.fromhex(digits[: len(digits) // 2 * 2]))
    for name, sign, pattern, decode in (
        ("entities", "&#", _ENTITIES, html.unescape),
        ("percent", "%", _PERCENT, urllib.parse.unquote),
        ("escapes", "\\u", _ESCAPES, lambda found: re.sub(r"\\u(\w{4})\s?", lambda each: chr(int(each.group(1), 16)), found)),
    ):
        if sign in text and pattern.search(text):
            yield name, decode(text)


def _readable(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    if len(text) >= 8 and sum(letter.isprintable() or letter.isspace() for letter in text) == len(text):
        yield name, text
