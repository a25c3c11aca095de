"""The main score of each of MTEB's families from its definition, in float64. Sampling and seeds are mteb's; nothing else is."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from sklearn.cluster import MiniBatchKMeans

Vectors = np.ndarray
SEED, EXPERIMENTS, SAMPLES = 42, 10, 8


def unit(vectors: Vectors) -> Vectors:
    """Of length 1; a text without tokens may have none, and is like nothing then."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def ranking(scores: Sequence[float], ids: Sequence[str]) -> list[str]:
    """Ids, best first; equal scores by descending id, as in trec_eval."""
    return [key for _, key in sorted(zip(scores, ids, strict=True), reverse=True)]


def ndcg(ranked: Sequence[str], grades: Mapping[str, int], cutoff: int = 10) -> float:
    """Linear gain, discount log2(rank + 1)."""
    gained = sum(max(grades.get(key, 0), 0) / math.log2(rank + 2) for rank, key in enumerate(ranked[:cutoff]))
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:cutoff]
    ideal = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))
    return gained / ideal if ideal else 0.0


def average_precision(ranked: Sequence[str], grades: Mapping[str, int]) -> float:
    """Of all relevant documents, those that are not ranked at all among them."""
    relevant = {key for key, grade in grades.items() if grade > 0}
    found, total = 0, 0.0
    for rank, key in enumerate(ranked, 1):
        if key in relevant:
            found += 1
            total += found / rank
    return total / len(relevant) if relevant else 0.0


def retrieval(
    queries: Vectors,
    documents: Vectors,
    query_ids: Sequence[str],
    ids: Sequence[str],
    grades: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Sequence[str]] | None = None,
) -> float:
    """nDCG@10 of the whole corpus; with candidates, MAP of theirs."""
    place = {key: number for number, key in enumerate(ids)}
    values = []
    for key, scores in zip(query_ids, unit(queries) @ unit(documents).T, strict=True):
        if candidates is None:
            values.append(ndcg(ranking(scores.tolist(), ids), grades[key]))
        else:
            own = candidates[key]
            values.append(average_precision(ranking([float(scores[place[each]]) for each in own], own), grades[key]))
    return float(np.mean(values))


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    a, b = (ranks(np.asarray(each, np.float64)) for each in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


def cosines(first: Vectors, second: Vectors) -> np.ndarray:
    """Of each pair, by |u - v|^2 = 2 - 2 cos, so that all pairs of equal texts have exactly 1."""
    return 1 - ((unit(first) - unit(second)) ** 2).sum(1) / 2


def sts(first: Vectors, second: Vectors, scores: Sequence[float]) -> float:
    return spearman(cosines(first, second).tolist(), scores)


def step_precision(scores: np.ndarray, labels: Sequence[int]) -> float:
    """Average precision: the sum of (recall gained) x precision over the different thresholds."""
    wanted, total, recall = np.asarray(labels), 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        above = scores >= threshold
        gained = float(wanted[above].sum() / wanted.sum())
        total += (gained - recall) * float(wanted[above].mean())
        recall = gained
    return total


def pair_classification(first: Vectors, second: Vectors, labels: Sequence[int]) -> float:
    """The largest average precision of cosine, dot product, and Manhattan and Euclidean distance."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    similarities = [cosines(a, b), (a * b).sum(1), -np.abs(a - b).sum(1), -np.linalg.norm(a - b, axis=1)]
    return max(step_precision(each, labels) for each in similarities)


def draws(labels: Sequence[str]) -> list[list[int]]:
    """mteb's samples of eight texts a label: each experiment shuffles, with one seed, what the one before left."""
    order, samples = list(range(len(labels))), []
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(order)
        counts: dict[str, int] = {}
        sample = []
        for place in order:
            if counts.get(labels[place], 0) < SAMPLES:
                counts[labels[place]] = counts.get(labels[place], 0) + 1
                sample.append(place)
        samples.append(sample)
    return samples


def softmax_regression(x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Weights [d + 1, classes], the intercepts last, of the least sum of log losses plus |W|^2 / 2 (three classes and more)."""
    n, d = x.shape
    one_hot = np.eye(classes)[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(d + 1, classes)
        z = x @ weights[:-1] + weights[-1]
        z = z - z.max(1, keepdims=True)
        log_sum = np.log(np.exp(z).sum(1))
        residual = np.exp(z - log_sum[:, None]) - one_hot
        gradient = np.vstack([x.T @ residual + weights[:-1], residual.sum(0, keepdims=True)])
        return float(log_sum.sum() - z[np.arange(n), y].sum() + (weights[:-1] ** 2).sum() / 2), gradient.ravel()

    options = {"maxiter": 2000, "gtol": 1e-6, "ftol": 0.0, "maxfun": 10_000}
    return np.asarray(minimize(loss, np.zeros((d + 1) * classes), jac=True, method="L-BFGS-B", options=options).x).reshape(
        d + 1, classes
    )


def classification(train: Vectors, train_labels: Sequence[str], test: Vectors, test_labels: Sequence[str]) -> float:
    names = sorted(set(train_labels))
    numbers = np.array([names.index(label) for label in train_labels])
    x, wanted = np.asarray(train, np.float64), np.asarray(test, np.float64)
    accuracies = []
    for sample in draws(train_labels):
        weights = softmax_regression(x[sample], numbers[sample], len(names))
        predicted = (wanted @ weights[:-1] + weights[-1]).argmax(1)
        accuracies.append(np.mean([names[place] == label for place, label in zip(predicted, test_labels, strict=True)]))
    return float(np.mean(accuracies))


def entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def v_measure(labels: np.ndarray, clusters: np.ndarray) -> float:
    """The harmonic mean of homogeneity and completeness (Rosenberg & Hirschberg 2007)."""
    table = np.zeros((labels.max() + 1, clusters.max() + 1))
    np.add.at(table, (labels, clusters), 1)
    of_labels, of_clusters, of_both = entropy(table.sum(1)), entropy(table.sum(0)), entropy(table.ravel())
    homogeneity = 1 - (of_both - of_clusters) / of_labels if of_labels else 1.0
    completeness = 1 - (of_both - of_labels) / of_clusters if of_clusters else 1.0
    return 2 * homogeneity * completeness / (homogeneity + completeness) if homogeneity + completeness else 0.0


def clustering(vectors: Vectors, labels: Sequence[str], size: int = 16_384) -> float:
    """Mini-batch k-means is sklearn's, in float64."""
    names = sorted(set(labels))
    numbers, x = np.array([names.index(label) for label in labels]), np.asarray(vectors, np.float64)
    draw, values = random.Random(SEED), []
    means = MiniBatchKMeans(n_clusters=len(names), batch_size=512, init="k-means++", n_init=1, random_state=SEED)
    for _ in range(EXPERIMENTS):
        sample = draw.choices(range(len(x)), k=size)
        values.append(v_measure(numbers[sample], means.fit_predict(x[sample])))
    return float(np.mean(values))


def bitext(first: Vectors, second: Vectors) -> float:
    """F1 of each sentence as a class that is right once, and predicted as often as it is nearest: the mean."""
    nearest = (unit(first) @ unit(second).T).argmax(1)
    values = []
    for place in range(len(nearest)):
        hit, predicted = int(nearest[place] == place), int((nearest == place).sum())
        values.append(2 * hit / (1 + predicted))
    return float(np.mean(values))


def summarisation(machine: Sequence[Vectors], human: Sequence[Vectors], relevance: Sequence[Sequence[float]]) -> float:
    """Texts whose relevances or similarities are all equal are left out."""
    values = []
    for a, b, wanted in zip(machine, human, relevance, strict=True):
        best = (unit(a) @ unit(b).T).max(1).tolist()
        if len(set(best)) > 1 and len(set(wanted)) > 1:
            values.append(spearman(best, wanted))
    return float(np.mean(values))
