"""Tasks of mteb: which data sets they evaluate on. mteb is asked for metadata alone; the data are read as any other."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from datakit.errors import MissingExtra, UserError
from datakit.recipe import EvaluationBeir, EvaluationHuggingFace, EvaluationMteb, Path

# Types whose data sets hold a corpus, queries and judgements, each in a configuration of its own.
RETRIEVAL = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")


def parts(wanted: EvaluationMteb) -> list[tuple[EvaluationBeir | EvaluationHuggingFace, str]]:
    """What a task evaluates on, for each split and subset: the data set, and what goes before names of its configurations.

    Raises MissingExtra without mteb, and a UserError for a task that it does not know, or that is not about texts.
    """
    task = _task(wanted.task)
    metadata = task.metadata
    path, revision = Path(metadata.dataset["path"]), metadata.dataset["revision"]
    found: list[tuple[EvaluationBeir | EvaluationHuggingFace, str]] = []
    for split in metadata.eval_splits:
        for subset in metadata.hf_subsets:
            config = None if subset == "default" else str(subset)
            if metadata.type in RETRIEVAL:
                beir = EvaluationBeir(type="beir", path=path, split=split, texts=wanted.texts, revision=revision)
                found.append((beir, f"{config}-" if config else ""))
            else:
                columns = list(_columns(task, wanted.task))
                plain = EvaluationHuggingFace(
                    type="huggingface", path=path, config=config, split=split, revision=revision, columns=columns
                )
                found.append((plain, ""))
    return found


def _task(name: str) -> Any:
    try:
        import mteb
    except ImportError as error:
        raise MissingExtra(f"The evaluation set 'mteb: {name}'", "mteb", "eval") from error
    try:
        return mteb.get_task(name)
    except Exception as error:  # mteb raises KeyError and others for names that it does not know
        near = difflib.get_close_matches(name, [task.metadata.name for task in mteb.get_tasks()], n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"mteb knows no task '{name}'.{guess}") from error


def _columns(task: Any, name: str) -> Iterator[str]:
    """The columns of texts that a task names, in one of the ways in which mteb's kinds of tasks do."""
    named: list[Any] = [getattr(task, each, None) for each in ("input_column_name", "input1_column_name", "input2_column_name")]
    named += list(getattr(task, "column_names", None) or ())
    if task.metadata.type == "BitextMining":
        named += ["sentence1", "sentence2"]
    if task.metadata.type == "Summarization":
        named += ["text", "human_summaries", "machine_summaries"]
    columns = list(dict.fromkeys(column for column in named if isinstance(column, str)))
    if not columns:
        raise UserError(
            f"mteb does not say which columns of the task '{name}' ({task.metadata.type}) hold texts. Name its data set "
            f"('{task.metadata.dataset['path']}') with 'type: huggingface' and 'columns'."
        )
    yield from columns
