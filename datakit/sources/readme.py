"""A package's README as plain text: no badges, no HTML, links as their text."""

from __future__ import annotations

import html
import re

_COMMENT = re.compile(r"<!--.*?-->", re.S)
_STYLE = re.compile(r"<(style|script|svg)\b.*?</\1>", re.S | re.I)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_AUTOLINK = re.compile(r"<(?:https?://|mailto:)[^<>\s]+>")
_IMAGE = re.compile(r"!\[[^\]]*\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\]]*\])")
_LINK = re.compile(r"\[([^\[\]]*)\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\]]*\])")
_REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s*\S+.*$", re.M)
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.M)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|__)(?=\S)([^*\n]+(?:\n[^*\n]+)?)(?<=\S)\1(?!\w)")
_FENCE = re.compile(r"^\s*(```|~~~).*$", re.M)
# A directive whose content is no text, with all that is indented under it.
_DIRECTIVE = re.compile(
    r"^\.\.\s+(?:\|[^|\n]*\|\s+)?(?:image|figure|raw|contents|toctree|include)::[^\n]*\n"
    r"(?:[ \t]+\S[^\n]*\n|\s*\n(?=[ \t]+\S))*",
    re.M,
)
_RST_COMMENT = re.compile(r"^(?:\.\.(?:\s+[^\n]*)?|__\s+\S+)$", re.M)
_RST_LINK = re.compile(r"`([^`<>]+?)\s*<[^`<>]+>`__?")
_RST_REFERENCE = re.compile(r"`([^`\n]+)`__?(?!\w)")
_RST_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]+>)?`")
_SUBSTITUTION = re.compile(r"\|[\w-]+\|_{0,2}")
_RULE = re.compile(r"^\s*([=\-~^\"'*#+_|: ])[=\-~^\"'*#+_|: ]{2,}$", re.M)
_NO_LETTERS = re.compile(r"^[\W\d_]+$", re.M)
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_ADDRESS = re.compile(r"^\W*(?:[\w ()./-]{1,60}:)?\s*https?://\S+\s*$", re.M)


def plain(text: str, content_type: str | None) -> str:
    """The text of a README in Markdown or reStructuredText; `content_type` as in a package's metadata."""
    text = text.replace("\r\n", "\n")
    text = _STYLE.sub(" ", _COMMENT.sub(" ", text))
    rst = content_type is None or "rst" in content_type
    if rst:
        text = _DIRECTIVE.sub("", text + "\n")
        text = _RST_COMMENT.sub("", text)
        text = _RST_ROLE.sub(r"`\1`", _RST_LINK.sub(r"\1", text))
        text = _RST_REFERENCE.sub(r"\1", text)
        text = _SUBSTITUTION.sub("", text).replace("``", "`")
    text = _AUTOLINK.sub("", text)
    text = _TAG.sub(" ", text)
    text = _IMAGE.sub("", text)
    while (unlinked := _LINK.sub(r"\1", text)) != text:
        text = unlinked
    text = _FENCE.sub("", _REFERENCE.sub("", text))
    text = _EMPHASIS.sub(r"\2", _HEADING.sub(r"\1", text))
    text = _NO_LETTERS.sub("", _RULE.sub("", _ADDRESS.sub("", html.unescape(text))))
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
