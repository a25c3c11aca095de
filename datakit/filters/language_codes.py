"""Language tags: what a fastText model calls a language, and what a recipe calls it (BCP 47)."""

from __future__ import annotations

# lid.176 uses the codes of Wikipedias. Where such a code is not the BCP 47 tag of that language:
_TAGS = {"als": "gsw", "bh": "bho"}

# Tags of a recipe that stand for other tags of the model: macrolanguages and their members, retired and three-letter tags.
# lid.176 knows Norwegian as `no` (which there means Bokmål) and Serbo-Croatian as `sh` beside `bs`, `hr` and `sr`.
_COVERS = {
    "ar": ("ar", "arz"),
    "arb": ("ar",),
    "az": ("az", "azb"),
    "azj": ("az",),
    "bs": ("bs", "sh"),
    "cmn": ("zh",),
    "ekk": ("et",),
    "fil": ("tl",),
    "hr": ("hr", "sh"),
    "in": ("id",),
    "iw": ("he",),
    "ji": ("yi",),
    "jw": ("jv",),
    "khk": ("mn",),
    "kmr": ("ku",),
    "ku": ("ku", "ckb"),
    "lvs": ("lv",),
    "mo": ("ro",),
    "nb": ("no",),
    "no": ("no", "nn"),
    "npi": ("ne",),
    "ory": ("or",),
    "pa": ("pa", "pnb"),
    "pes": ("fa",),
    "plt": ("mg",),
    "sh": ("sh", "bs", "hr", "sr"),
    "sr": ("sr", "sh"),
    "swh": ("sw",),
    "uzn": ("uz",),
    "ydd": ("yi",),
    "zh": ("zh", "wuu", "yue"),
    "zsm": ("ms",),
}


def tag(label: str) -> str:
    """The BCP 47 tag of a model's label: "__label__als" is "gsw"."""
    code = label.removeprefix("__label__")
    return _TAGS.get(code, code)


def covered(allowed: str) -> tuple[str, ...]:
    """The model's tags that a recipe's tag allows. Script and region do not count: "zh-Hant-TW" is "zh"."""
    primary = allowed.replace("_", "-").split("-")[0].lower()
    return _COVERS.get(primary, (primary,))
