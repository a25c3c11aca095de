"""The dataset card: README.md, with the YAML head that the Hub and `datasets.load_dataset` read."""

from __future__ import annotations

import json
from typing import Any

import yaml

from datakit.opened import Build
from datakit.publish import diversity, evaluation_sets, figures, mixture
from datakit.publish.manifest import SourceEntry
from datakit.publish.reasons import in_words

# The Hub's names for the tasks of the registry.
HUB_TASKS = {
    "retrieval": "text-retrieval",
    "question_answering": "question-answering",
    "code_search": "text-retrieval",
    "similarity": "sentence-similarity",
    "nli": "text-classification",
    "paraphrase": "sentence-similarity",
    "classification": "text-classification",
    "clustering": "text-classification",
    "bitext": "translation",
    "summarisation": "summarization",
    "conversation": "text-retrieval",
    "fact_checking": "text-retrieval",
    "reranking": "text-ranking",
}

# Licences that the Hub takes as they are; it refuses a card with another word in that place.
HUB_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by",
    "ofl-1.1", "openrail", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip

HUB_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip

MOST_WARNINGS = 10

# Parts with columns of their own.
CONFIGS = {
    part: {"config_name": part, "data_files": [{"split": part, "path": f"{part}/*.parquet"}]} for part in ("rejected", "judged")
}

COLUMNS = {
    "row_id": "digest of source, record and position; what `datakit explain` takes",
    "content_id": "digest of category, query and positive",
    "query_id, positive_id, document_id": "digests of the texts and of the document: equal texts share them",
    "category, task, source": "registry key, task family, origin",
    "language, positive_language": "BCP 47",
    "instruction, document_instruction": "prefixes for query and documents",
    "query, positive": "the two texts that belong together",
    "negatives": "hard negatives: id, text, miner, score, difficulty (0 to 1)",
    "score, label": "graded similarity; class",
    "in_batch_negatives, batch_group": "whether, and with whom, a row may share a batch",
    "quality": "0 to 1",
    "provenance": "persona, model, template, request_id, parents of a written row",
}


def render(build: Build) -> str:
    """The card of a build."""
    return (
        "---\n"
        + yaml.safe_dump(head(build), sort_keys=False, allow_unicode=True)
        + "---\n\n"
        + "\n\n".join(_sections(build))
        + "\n"
    )


def head(build: Build) -> dict[str, Any]:
    """The YAML head. `rejected` and `judged` are configs of their own, since their columns differ."""
    manifest = build.manifest
    entries = list(manifest.categories.values())
    languages = sorted({language for entry in entries for language in entry.languages if language != "und"})
    tasks = sorted({HUB_TASKS[entry.task] for entry in entries if entry.kept and entry.task in HUB_TASKS})
    splits = [part for part in ("train", "validation") if build.files(part)]
    licence = _licence([source for _, source in manifest.sources])
    return {
        "pretty_name": manifest.name,
        **({"language": languages} if languages else {}),
        "license": licence[0] if len(licence) == 1 else licence,
        **({"task_categories": tasks} if tasks else {}),
        "size_categories": [_size(manifest.totals.kept)],
        "tags": ["text-embeddings", "hard-negatives", "sentence-transformers", "datakit"],
        "configs": [
            {
                "config_name": "default",
                "default": True,
                "data_files": [{"split": part, "path": f"{part}/*.parquet"} for part in splits],
            },
            # `datasets` cannot load a split without rows.
            *(config for part, config in CONFIGS.items() if any(manifest.files[name].rows for name in _names(build, part))),
        ],
    }


def _names(build: Build, part: str) -> list[str]:
    """The names of the files of a part in the manifest."""
    return [name for name in build.manifest.files if name.startswith(f"{part}/")]


def _licence(sources: list[SourceEntry]) -> list[str]:
    """The licences of the sources as the Hub knows them; "other" for what it does not know, "unknown" for what is not stated."""
    stated = {(source.licence or "unknown").strip().lower() for source in sources} or {"unknown"}
    return sorted({name if name in HUB_LICENCES or name == "unknown" else "other" for name in stated})


def _size(rows: int) -> str:
    return next((name for limit, name in HUB_SIZES if rows < limit), "n>1T")


def _sections(build: Build) -> list[str]:
    manifest, totals = build.manifest, build.manifest.totals
    sections = [f"# {manifest.name}"]
    if manifest.description:
        sections.append(manifest.description.strip())
    sections.append(
        f"Version `{manifest.version}`, made by datakit {manifest.datakit}: {totals.train:,} rows to train on, "
        f"{totals.validation:,} to measure on. The split left no query and no positive in both, but for names of classes. "
        f"{totals.created:,} rows came in; {totals.rejected:,} were rejected and stand in `rejected/`, each with its reason; "
        f"{totals.not_sampled:,} were in order and not drawn. "
        "`report.html` shows all of it."
    )
    if scored := sum(manifest.files[name].rows or 0 for name in _names(build, "judged")):
        sections.append(
            f"A language model judged {scored:,} rows; its scores from 1 to 5 stand in `judged/`, as labels for a classifier. "
            "They are as good as that model."
        )
    sections.append(_loading(build))
    sections.append("## Categories\n\n" + _table(
        ["category", "task", "rows in", "rejected", "not sampled", "train", "validation", "languages"],
        [
            [name, entry.task, entry.created, sum(entry.rejected.values()), entry.not_sampled, entry.train, entry.validation,
             ", ".join(entry.languages[:5])]
            for name, entry in manifest.categories.items()
        ],
    ))  # fmt: skip
    rejected: dict[str, int] = {}
    for entry in manifest.categories.values():
        for reason, rows in entry.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + rows
    if rejected:
        lines = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
        sections.append("## Rejected\n\n" + _table(["reason", "rows", "meaning"], [[r, n, in_words(r)] for r, n in lines]))
    sections.append("## Columns\n\n" + _table(["column", "meaning"], [[f"`{k}`", v] for k, v in COLUMNS.items()]))
    sections.append("## Sources and licences\n\n" + _table(
        ["category", "source", "licence"],
        [[name, source.name, source.licence or "not stated"] for name, source in manifest.sources],
    ))  # fmt: skip
    if manifest.models:
        sections.append("## Models\n\n" + _table(
            ["used as", "model", "digest"],
            [[place, f"`{model.model}`", f"{model.digest or ''}"] for place, model in manifest.models.items()],
        ))  # fmt: skip
    if manifest.spent.requests:
        money = "".join(f", {amount:,.2f} {currency}" for currency, amount in manifest.spent.money.items())
        sections.append(
            f"Language models were asked {manifest.spent.requests:,} times: {manifest.spent.prompt_tokens:,} tokens read, "
            f"{manifest.spent.completion_tokens:,} written{money}."
        )
    sections += _mixture(build)
    sections += _evaluation_sets(build)
    sections += _diversity(build)
    sections += _example(build)
    feedback = " --feedback feedback.json" if "feedback.json" in manifest.files else ""
    sections.append(
        f"## Made again\n\n`datakit build recipe.yaml{feedback}` makes the same bytes from the same sources, packages and models."
    )
    return sections


def _mixture(build: Build) -> list[str]:
    notes = mixture.noted(build.manifest.steps)
    if "feedback" not in notes:
        return []
    lines: list[list[Any]] = [[name, *cells] for name, cells in mixture.feedback_lines(notes)]
    return ["## Feedback\n\n" + mixture.feedback_heading(notes) + "\n\n" + _table(["category", *mixture.FEEDBACK_HEADS], lines)]


def _evaluation_sets(build: Build) -> list[str]:
    found = evaluation_sets.lines(build.manifest.steps)
    if not found:
        return []
    table = _table(["evaluation set", *evaluation_sets.HEADS], [[name, *cells] for name, cells in found])
    return [f"## Evaluation sets\n\n{evaluation_sets.HEADING}\n\n{table}"]


def _diversity(build: Build) -> list[str]:
    found = build.manifest.diversity
    if found is None:
        return []
    heads = list(diversity.HEADS)
    lines: list[list[Any]] = [[name, *figures] for name, figures in diversity.lines(found.categories)]
    said = "\n".join(f"- {sentence}" for sentence in found.warnings[:MOST_WARNINGS])
    left = len(found.warnings) - MOST_WARNINGS
    return [
        f"## Diversity\n\n{diversity.heading(found)}\n\n" + _table(["category", *heads], lines),
        *([f"Little variety:\n\n{said}" + (f"\n- {left} more are in `manifest.json`" if left > 0 else "")] if said else []),
    ]


def _loading(build: Build) -> str:
    lines = ["import datasets, polars", ""]
    splits = "train, validation" if build.files("validation") else "train"
    lines.append(f'rows = datasets.load_dataset("PATH")  # {splits}')
    if build.manifest.totals.rejected:
        lines.append(
            'dropped = datasets.load_dataset("PATH", "rejected")  # with step, reason, value, threshold, other_id, detail'
        )
    lines.append('frame = polars.scan_parquet("PATH/train/*.parquet")')
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _example(build: Build) -> list[str]:
    """One row as JSON. A line of JSON cannot close the fence, whatever the text says."""
    rows = figures.sample(build, 1)[:1]
    if not rows:
        return []
    row = {key: value for key, value in rows[0].items() if key != "part" and value is not None}
    text = json.dumps(_cut(row), indent=2, ensure_ascii=False)
    return [f"## A row\n\n```json\n{text}\n```"]


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= 300 else value[:300] + " …"
    if isinstance(value, list):
        return [_cut(item) for item in value[:2]]
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items() if item is not None}
    return round(value, 4) if isinstance(value, float) else value


def _table(heads: list[str], lines: list[list[Any]]) -> str:
    def cell(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|").replace("\n", " ")

    numeric = [bool(lines) and isinstance(lines[0][column], int) for column in range(len(heads))]
    rule = "|".join("---:" if right else "---" for right in numeric)
    body = "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)
    return f"| {' | '.join(heads)} |\n|{rule}|\n{body}"
