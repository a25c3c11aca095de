"""How often is the language filter right, how sure is it, and what does it find of texts in two languages?

    DATAKIT_REAL_DATA=... python benchmarks/language.py [--every 1] [--parts text,pair,tatoeba,switch,speed]

Sentences of `filters/language-id` whose digest is odd: the calibration that datakit carries has seen only the others.
Windows of 2 and 4 words lie at a place drawn by the digest of the sentence.
"Right" is the file's own language (`nb.txt` is fastText's `no`).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from datakit.filters.language import _told_by, identify
from datakit.filters.language_calibrate import read_sentences, windows
from datakit.filters.language_model import Array, Identifier, decide, evidence, load, load_bare, probabilities, terms
from datakit.filters.language_model import lines as clean
from datakit.filters.language_switch import mixed
from datakit.recipe import LanguageFilter

# Of Tatoeba's files (ISO 639-3).
CODES = {
    "deu": "de", "fra": "fr", "rus": "ru", "jpn": "ja", "cmn": "zh", "ara": "ar", "hin": "hi", "tur": "tr", "spa": "es",
    "nld": "nl", "ita": "it", "por": "pt", "swe": "sv", "dan": "da", "nob": "no", "fin": "fi", "pol": "pl", "ces": "cs",
    "kor": "ko", "vie": "vi", "est": "et", "kat": "ka", "swh": "sw", "tel": "te", "tgl": "tl", "ell": "el", "heb": "he",
    "ukr": "uk", "hun": "hu", "ind": "id",
}  # fmt: skip
GROUPS = ("no da sv", "bs hr sr", "id ms", "cs sk")
PRECISIONS = (0.9, 0.95, 0.97, 0.98, 0.99)


def plain(texts: pl.Series, bare: Identifier) -> tuple[Array, Array]:
    """What fastText says alone, lower-cased: the tag and its probability."""
    found = probabilities(clean(texts).to_list(), bare)
    return np.array(bare.languages)[found.argmax(axis=1)], found.max(axis=1)


def ours(texts: pl.Series, identifier: Identifier) -> tuple[Array, Array]:
    tags, confidence = identify(texts, identifier)
    return np.array([tag or "" for tag in tags]), confidence


def coverage(right: Array, confidence: Array, precision: float) -> float:
    """The largest share of texts, taken from the surest down, of which this share is right."""
    order = np.argsort(-confidence, kind="stable")
    reached = np.flatnonzero(np.cumsum(right[order]) / np.arange(1, len(order) + 1) >= precision)
    return (reached[-1] + 1) / len(order) if len(reached) else 0.0


def macro(values: Array, language: Array) -> float:
    return float(np.mean([values[language == each].mean() for each in np.unique(language)]))


def text_part(sentences: pl.DataFrame, identifier: Identifier, bare: Identifier) -> None:
    known = sentences.filter(pl.col("language").is_in(list(identifier.languages)))
    print(f"\n{known['language'].n_unique()} languages, {len(known):,} held-out sentences\n")
    print("| texts | who | right, macro | right, micro | " + " | ".join(f"coverage at {p:.0%}" for p in PRECISIONS) + " |")
    print("|---|---|---|---|" + "---|" * len(PRECISIONS))
    kept = {}
    for count, name in ((2, "2 words"), (4, "4 words"), (0, "sentences")):
        texts = windows(known, count)
        language = texts["language"].to_numpy()
        for who, (tags, confidence) in (
            ("lid.176.ftz", plain(texts["text"], bare)),
            ("datakit", ours(texts["text"], identifier)),
        ):
            right = tags == language
            kept[name] = (language, tags, confidence)
            shares = " | ".join(f"{coverage(right, confidence, p):.1%}" for p in PRECISIONS)
            print(f"| {name} | {who} | {macro(right, language):.1%} | {right.mean():.1%} | {shares} |")
    print("\n| texts | min_confidence | unknown, macro | right of the others, macro | micro |\n|---|---|---|---|---|")
    for name, (language, tags, confidence) in kept.items():
        for least in (0.5, 0.8, 0.9, 0.97):
            sure = confidence >= least
            right = (tags == language)[sure]
            print(
                f"| {name} | {least} | {macro(~sure, language):.1%} | {macro(right, language[sure]):.2%} | {right.mean():.2%} |"
            )
    print("\n| texts | confidence | texts | mean confidence | right |\n|---|---|---|---|---|")
    for name, (language, tags, confidence) in kept.items():
        for low, high in ((0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.96), (0.96, 0.98), (0.98, 1.01)):
            chosen = (confidence >= low) & (confidence < high)
            if chosen.any():
                right = (tags == language)[chosen].mean()
                print(f"| {name} | {low} to {min(high, 1)} | {chosen.sum():,} | {confidence[chosen].mean():.3f} | {right:.3f} |")
    for name, (language, tags, confidence) in kept.items():
        sure = confidence >= 0.9
        each = {code: (tags == language)[language == code].mean() for code in np.unique(language)}
        worst = sorted(each, key=lambda code: each[code])[:10]
        said = (f"{code} {each[code]:.1%} ({(~sure)[language == code].mean():.0%} unknown)" for code in worst)
        print(f"\nWorst ten, {name}, right (unknown at 0.9): " + ", ".join(said))
        for group in GROUPS:
            parts = []
            for code in group.split():
                own = (language == code) & sure
                parts.append(
                    f"{code} {each[code]:.1%}, {(tags == language)[own].mean():.1%} of {own.sum() / (language == code).sum():.0%}"
                )
            print(f"- {group}: right, and right of those at 0.9: " + "; ".join(parts))
    unknown = sentences.filter(~pl.col("language").is_in(list(identifier.languages)))
    for count, name in ((2, "2 words"), (4, "4 words"), (0, "sentences")):
        texts = windows(unknown, count)["text"]
        shares = [f"{(who >= 0.9).mean():.1%}" for who in (plain(texts, bare)[1], ours(texts, identifier)[1])]
        print(
            f"\nLanguages that the model does not know, {name}: surer than 0.9 of a wrong one: "
            f"plain {shares[0]}, datakit {shares[1]}"
        )


def per_language(sentences: pl.DataFrame, identifier: Identifier) -> None:
    known = sentences.filter(pl.col("language").is_in(list(identifier.languages)))
    parts = []
    for count in (2, 4, 0):
        texts = windows(known, count)
        tags, confidence = ours(texts["text"], identifier)
        right, sure = pl.Series(tags) == texts["language"], pl.Series(confidence) >= 0.9
        frame = texts.select("language").with_columns(right=right, unknown=~sure)
        parts.append({code: f"{a:.0%} ({b:.0%})" for code, a, b in frame.group_by("language").mean().iter_rows()})
    print("\n| language | 2 words: right (unknown at 0.9) | 4 words | sentences |\n|---|---|---|---|")
    for code in sorted(parts[0]):
        print(f"| {code} | " + " | ".join(part[code] for part in parts) + " |")


def pair_part(sentences: pl.DataFrame, identifier: Identifier) -> None:
    known = sentences.filter(pl.col("language").is_in(list(identifier.languages))).sort("language", "number")
    print("\nPairs: a window of words and another sentence of its language, cut to 8 words\n")
    print("| texts | right alone | with the other side | coverage at 97% alone | with | wrong at 0.9 alone | with |")
    print("|---|---|---|---|---|---|---|")
    for count, name in ((2, "2 words"), (4, "4 words")):
        texts = windows(known, count)
        language = texts["language"].to_numpy()
        partner = known["text"].to_list()
        rest = {
            code: [text for text, each in zip(partner, known["language"], strict=True) if each == code]
            for code in np.unique(language)
        }
        position: dict[str, int] = {}
        sides = []
        for code in language:
            position[code] = position.get(code, 0) + 1
            sides.append(" ".join(rest[code][position[code] % len(rest[code])].split()[:8]))
        found: list[tuple[Array, Array]] = []
        for paired in (False, True):
            tags: list[str | None] = []
            sure = []
            for start in range(0, len(texts), 2048):
                own = evidence(texts["text"].slice(start, 2048), identifier)
                if paired:
                    other = evidence(pl.Series(sides[start : start + 2048]), identifier)
                    every = np.arange(len(own.words))
                    own = _told_by(own, every, other, every)
                said, confidence = decide(own, identifier)
                tags += said
                sure.append(confidence)
            found.append((np.array([tag or "" for tag in tags]) == language, np.concatenate(sure)))
        (alone, first), (both, second) = found
        print(
            f"| {name} | {alone.mean():.1%} | {both.mean():.1%} | {coverage(alone, first, 0.97):.1%} | "
            f"{coverage(both, second, 0.97):.1%} | {1 - alone[first >= 0.9].mean():.2%} | {1 - both[second >= 0.9].mean():.2%} |"
        )


def tatoeba_part(folder: Path, identifier: Identifier, bare: Identifier) -> None:
    print("\nAnother kind of sentence: Tatoeba, whole\n\n| language | plain | datakit | coverage at 97% plain | datakit |")
    print("|---|---|---|---|---|")
    for file in sorted(folder.rglob("*")):
        code = CODES.get(file.suffix.lstrip("."))
        if code and file.is_file():
            texts = pl.Series([line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()])
            (a, p), (b, q) = plain(texts, bare), ours(texts, identifier)
            covered = (coverage(a == code, p, 0.97), coverage(b == code, q, 0.97))
            print(f"| {code} | {(a == code).mean():.1%} | {(b == code).mean():.1%} | {covered[0]:.1%} | {covered[1]:.1%} |")


def switch_part(data: Path, sentences: pl.DataFrame, identifier: Identifier) -> None:
    rows = []
    for file in sorted((data / "filters/code-switch").glob("*.conllu")):
        for block in file.read_text(encoding="utf-8").split("\n\n"):
            text = next((line[9:] for line in block.splitlines() if line.startswith("# text = ")), None)
            if text:
                kinds = {part for part in ("DE", "TR") if f"CSID={part}" in block} | ({"x"} if "CSID=MIXED" in block else set())
                rows.append((text, {"DE", "TR"} <= kinds))
    alone = [(text, False) for text in sentences.filter(pl.col("language").is_in(["tr", "de"]))["text"]]
    texts = pl.Series([text for text, _ in rows + alone])
    truth = np.array([yes for _, yes in rows + alone])
    started = time.process_time()
    found = mixed(texts, identifier)
    seconds = time.process_time() - started
    score = found.confidence
    print(
        f"\nTurkish-German: {truth.sum():,} mixed, {(~truth).sum():,} in one language ({len(alone):,} of language-id); "
        f"{len(texts) / seconds:,.0f} texts/s\n"
    )
    print("| score | threshold at 95 % precision | recall |\n|---|---|---|")
    for name, values in (("confidence", score), ("confidence x share", score * found.share), ("share", found.share)):
        order = np.argsort(-values, kind="stable")
        precision = np.cumsum(truth[order]) / np.arange(1, len(order) + 1)
        at = np.flatnonzero((precision >= 0.95) & (values[order] > 0))
        if len(at):
            print(f"| {name} | {values[order][at[-1]]:.3f} | {truth[order][: at[-1] + 1].sum() / truth.sum():.1%} |")
    print("\n| min_confidence | max_switched | precision | recall | false alarms |\n|---|---|---|---|---|")
    for least in (0.5, 0.8, 0.9, 0.97):
        for share in (0.0, 0.1, 0.2):
            said = (score >= least) & (found.share > share)
            print(f"| {least} | {share} | {truth[said].mean():.1%} | {said[truth].mean():.1%} | {said[~truth].mean():.2%} |")
    others = sentences.filter(pl.col("language").is_in(list(identifier.languages)) & (pl.col("number") % 11 == 1))
    seen = mixed(others["text"], identifier)
    said = (seen.confidence >= 0.9) & (seen.share > 0.1)
    print(f"\nFalse alarms on {len(others):,} sentences of all languages (0.9, 0.1): {said.mean():.2%}")


def timed_runs(texts: pl.Series, identifier: Identifier, bare: Identifier) -> list[Callable[[], object]]:
    raw = [f"{line}\n" for line in clean(texts)]
    return [
        lambda: [bare.predict(line, 1, 0.0, "strict") for line in raw],
        lambda: [terms(texts.slice(start, 2048), bare) for start in range(0, len(texts), 2048)],
        lambda: identify(texts, identifier),
        lambda: (identify(texts, identifier), mixed(texts, identifier)),
    ]


def speed_part(sentences: pl.DataFrame, identifier: Identifier, bare: Identifier) -> None:
    print("\n| texts | predict alone, one label, texts/s of one core | + labels and scripts | datakit | with code-switch |")
    print("|---|---|---|---|---|")
    for count, name in ((4, "4 words"), (8, "8 words"), (0, "sentences")):
        texts = windows(sentences, count)["text"].gather_every(15)
        runs = timed_runs(texts, identifier, bare)
        speeds: list[list[float]] = [[] for _ in runs]
        for _ in range(5):
            for run, speed in zip(runs, speeds, strict=True):
                started = time.process_time()
                run()
                speed.append(len(texts) / (time.process_time() - started))
        print(f"| {name} | " + " | ".join(f"{np.median(each):,.0f}" for each in speeds) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--every", type=int, default=1, help="of the held-out sentences take one in so many")
    parser.add_argument("--parts", default="text,languages,pair,tatoeba,switch,speed")
    given = parser.parse_args()
    if given.data is None:
        parser.error("give --data, or set DATAKIT_REAL_DATA")
    model = LanguageFilter.model_fields["model"].default
    identifier, bare = load(model), load_bare(model)
    sentences = (
        read_sentences(given.data / "filters/language-id/sentences").filter(pl.col("number") % 2 == 1).gather_every(given.every)
    )
    parts = given.parts.split(",")
    if "text" in parts:
        text_part(sentences, identifier, bare)
    if "languages" in parts:
        per_language(sentences, identifier)
    if "pair" in parts:
        pair_part(sentences, identifier)
    if "tatoeba" in parts:
        tatoeba_part(given.data / "eval/tatoeba", identifier, bare)
    if "switch" in parts:
        switch_part(given.data, sentences, identifier)
    if "speed" in parts:
        speed_part(sentences, identifier, bare)


if __name__ == "__main__":
    main()
