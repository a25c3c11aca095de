"""The balance of a whole build: no row appears or disappears between the steps, nor between the last step and the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from datakit.errors import BuildError, UserError
from datakit.publish.manifest import CategoryEntry, File, Totals
from datakit.step import Counts, Output, Step

DEFECT = "This is a defect of datakit; no build was published."


def check_chain(outputs: Sequence[tuple[Step, Output]], final: Output) -> None:
    """Each step balances, takes in what its inputs gave out, and gives its rows to one step after it; the last one to nobody."""
    given = {step.key: output.report.counts.out for step, output in outputs}
    takers: Counter[str] = Counter()
    for step, output in outputs:
        counts = output.report.counts
        if not counts.balanced():
            raise BuildError(f"The step '{step.name}' does not balance: {counts}. {DEFECT}")
        if counts == Counts():
            continue  # it only looks at rows, or there were none
        missing = [source.name for source in step.inputs if source.key not in given]
        if missing:
            raise BuildError(f"The step '{step.name}' takes rows of '{missing[0]}', which is no step before it. {DEFECT}")
        flowed = sum(given[source.key] for source in step.inputs)
        if counts.rows_in != flowed:
            raise BuildError(f"The step '{step.name}' took in {counts.rows_in} rows, and {flowed} were given to it. {DEFECT}")
        takers.update(source.key for source in step.inputs)
    for step, output in outputs:
        expected = 0 if output.report.key == final.report.key else 1
        if output.report.counts.out and takers[step.key] != expected:
            raise BuildError(
                f"The {output.report.counts.out} rows of the step '{step.name}' go to {takers[step.key]} steps, "
                f"and must go to {expected}. {DEFECT}"
            )


def check_files(
    final: Output,
    parts: Mapping[str, Mapping[str, int]],
    files: Mapping[str, File],
    categories: Mapping[str, CategoryEntry],
    totals: Totals,
) -> None:
    """The files hold what the steps counted: created = train + validation + rejected + not sampled, for each category.

    `parts` are rows by category, read back from the published files of "train" and "validation".
    """
    for name, counts in final.report.categories.items():
        found = sum(rows.get(name, 0) for rows in parts.values())
        if found != counts.out:
            raise BuildError(f"The files hold {found} rows of '{name}', and the last step counted {counts.out}. {DEFECT}")
    for part, expected in (("rejected", totals.rejected), ("not_sampled", totals.not_sampled)):
        found = sum(file.rows or 0 for name, file in files.items() if name.startswith(f"{part}/"))
        if found != expected:
            raise BuildError(f"The files in '{part}' hold {found} rows, and the steps counted {expected}. {DEFECT}")
    for name, entry in categories.items():
        if not entry.balanced():
            raise BuildError(
                f"The category '{name}' does not balance: {entry.created} rows were made, and {entry.kept} kept, "
                f"{sum(entry.rejected.values())} rejected and {entry.not_sampled} not sampled. {DEFECT}"
            )
    if not totals.balanced():
        raise BuildError(f"The build does not balance: {totals}. {DEFECT}")


def check_something_kept(outputs: Sequence[tuple[Step, Output]], train: int) -> None:
    """A build without a row to train on is refused, with the step that rejected most."""
    if train:
        return
    created = sum(output.report.counts.created for _, output in outputs)
    if not created:
        raise UserError("No rows were read: every source of the recipe is empty. Nothing was published.")
    worst = max((output.report for _, output in outputs), key=lambda report: sum(report.counts.rejected.values()))
    rejected = sum(worst.counts.rejected.values())
    if not rejected:
        raise BuildError(f"No row was left to train on, of {created} that were made: none was sampled. Nothing was published.")
    reason, number = max(worst.counts.rejected.items(), key=lambda item: item[1])
    raise BuildError(
        f"No row was left to train on, of {created} that were made. The step '{worst.name}' rejected most of them: {rejected}, "
        f"{number} of these as {reason}. Nothing was published; loosen that step, or read other rows."
    )
