"""Filters that a user writes, under the same contract as all others.

The function is called with the rows of one shard (pa.Table, schema.EXAMPLE) and the parameters (dict), and returns a table in the
schema REASONS: at most one reason for a row. With `polars_filter` it is a function of a polars frame:

    from datakit.filters.user import polars_filter

    @polars_filter
    def no_shouting(rows: pl.DataFrame, share: float = 0.5) -> pl.Series:
        letters = rows["query"].str.count_matches(r"\\p{L}")
        return rows["query"].str.count_matches(r"\\p{Lu}") <= share * letters     # True: the row stays

Its answer is a boolean Series as `DataFrame.filter` takes it, or a Series of reasons (null: the row stays), or a frame with the
column `reason` and, as there are, `value`, `threshold`, `other_id`, `detail`; one item for each row, in their order.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import polars as pl
import pyarrow as pa

from datakit import storage
from datakit.assets import Assets
from datakit.errors import DatakitError, UserError
from datakit.recipe import UserFilter
from datakit.schema import EXAMPLE, REASONS
from datakit.step import Work, judged

VERSION = 1

Judge = Callable[[pa.Table, dict[str, Any]], pa.Table]
_REASON = re.compile(r"[A-Za-z]\w{0,63}")


@dataclass(frozen=True)
class Plugin:
    """Where a user's function is. A file travels with its text, so that a worker on another machine needs no copy of it."""

    function: str
    folder: str
    path: str
    source: str | None

    def load(self) -> Callable[..., Any]:
        module, _, name = self.function.rpartition(":")
        found = getattr(_module(self, module), name, None)
        if not callable(found):
            raise UserError(f"The user filter '{self.function}': '{self.path}' has no function '{name}'.")
        return found  # type: ignore[no-any-return]


def work(plugin: Plugin, work: Work) -> None:
    judged(work, _Judge(plugin))


def locate(parameters: UserFilter) -> Plugin:
    """Where the function of a filter is. Runs nothing of it. A UserError where there is no such module or file."""
    module, _, _ = parameters.function.rpartition(":")
    if module.endswith(".py"):
        return _from_file(parameters, os.path.expanduser(module))
    _look_in(os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        raise UserError(
            f"The user filter '{parameters.function}': there is no module '{module}' here nor among the installed packages. For "
            f"a file, write its path: './{module.replace('.', '/')}.py:NAME'."
        )
    if not spec.parent:
        # Read as a file, so that an edit counts, also in a notebook that has imported the module before.
        return _from_file(parameters, spec.origin)
    return Plugin(parameters.function, os.getcwd(), spec.origin, None)


def _from_file(parameters: UserFilter, path: str) -> Plugin:
    try:
        source = storage.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The user filter '{parameters.function}': the file '{path}' cannot be read: {error}.") from error
    return Plugin(parameters.function, os.path.abspath(os.path.dirname(path)), path, source)


def check(parameters: UserFilter, plugin: Plugin) -> None:
    """Imports the function, and refuses parameters that it does not take."""
    function = plugin.load()
    if not getattr(function, "takes_frame", False):
        return
    try:
        inspect.signature(function.__wrapped__).bind(None, **parameters.parameters)  # type: ignore[attr-defined]
    except TypeError as error:
        raise UserError(f"The user filter '{parameters.function}' does not fit its parameters: {error}.") from error


def digests(parameters: UserFilter, plugin: Plugin, assets: Assets) -> dict[str, str]:
    """The digests of the source of the function, and of what the recipe says that it reads."""
    found = {"function": assets.digest(plugin.path)}
    for path in parameters.files:
        if not storage.exists(path):
            raise UserError(f"The user filter '{parameters.function}' names the file '{path}', which does not exist.")
        found[f"file {path.raw}"] = assets.digest(path)
    return found


@dataclass(frozen=True)
class _Judge:
    plugin: Plugin

    def __call__(self, table: pa.Table, parameters: Any) -> pa.Table:
        return ask(self.plugin, table, parameters.parameters)


def ask(plugin: Plugin, table: pa.Table, parameters: dict[str, Any]) -> pa.Table:
    """What the function says of some rows (REASONS). What is wrong with its answer, or with itself, is a UserError."""
    function = plugin.load()
    try:
        answer = function(table, dict(parameters))
    except DatakitError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == plugin.path]
        where = f", line {lines[-1]} of '{plugin.path}'" if lines else ""
        raise UserError(
            f"The user filter '{plugin.function}' failed on {table.num_rows:,} rows: {type(error).__name__}: {error}{where}."
        ) from error
    return _checked(answer, table.num_rows, plugin.function)


def _checked(answer: Any, rows: int, name: str) -> pa.Table:
    def wrong(what: str) -> UserError:
        return UserError(f"The user filter '{name}' {what}")

    if not isinstance(answer, pa.Table):
        raise wrong(f"returned a {type(answer).__name__}; a pyarrow Table of reasons is needed, or the decorator polars_filter.")
    missing = [field.name for field in REASONS if not field.nullable and field.name not in answer.column_names]
    unknown = [column for column in answer.column_names if column not in REASONS.names]
    if missing or unknown:
        found = ", ".join(answer.column_names) or "none"
        raise wrong(f"returned the columns {found}; its table may have {', '.join(REASONS.names)}, and needs row and reason.")
    columns = [
        answer.column(field.name) if field.name in answer.column_names else pa.nulls(answer.num_rows, field.type)
        for field in REASONS
    ]
    try:
        said = pa.table(columns, names=REASONS.names).cast(REASONS).sort_by("row").combine_chunks()
    except (pa.ArrowException, ValueError) as error:
        raise wrong(f"returned columns of the wrong types: {str(error).splitlines()[0]}.") from error
    numbers = said.column("row").to_pylist()
    outside = [number for number in numbers if not 0 <= number < rows]
    if outside:
        raise wrong(f"gave a reason for row {outside[0]}; there are {rows:,} rows, from 0.")
    twice = [one for one, other in itertools.pairwise(numbers) if one == other]
    if twice:
        raise wrong(f"gave two reasons for row {twice[0]}; at most one is allowed.")
    for reason in dict.fromkeys(said.column("reason").to_pylist()):
        if not _REASON.fullmatch(reason):
            raise wrong(f"gave the reason {reason[:80]!r}; a short constant is needed, such as 'shouting'.")
    return said


def polars_filter(function: Callable[..., pl.Series | pl.DataFrame]) -> Judge:
    """Makes a filter of a function of a frame (columns: schema.EXAMPLE) and of the parameters as keywords."""

    @functools.wraps(function)
    def judge(table: pa.Table, parameters: dict[str, Any]) -> pa.Table:
        frame = pl.from_arrow(table.select(EXAMPLE.names))
        return _reasons(function(frame, **parameters), table.num_rows, function.__name__)

    judge.takes_frame = True  # type: ignore[attr-defined]
    return judge


def _reasons(answer: pl.Series | pl.DataFrame, rows: int, name: str) -> pa.Table:
    """The answer of a polars function as a table of reasons; `name` is the reason where it only says no."""
    if not isinstance(answer, pl.Series | pl.DataFrame):
        raise UserError(f"The user filter '{name}' returned a {type(answer).__name__}; a polars Series or DataFrame is needed.")
    if len(answer) != rows:
        raise UserError(f"The user filter '{name}' answered for {len(answer):,} rows, and was given {rows:,}.")
    if isinstance(answer, pl.Series):
        if answer.dtype == pl.Boolean:
            if answer.null_count():
                raise UserError(f"The user filter '{name}' says neither true nor false of {answer.null_count():,} rows (null).")
            answer = pl.select(pl.when(~answer).then(pl.lit(name))).to_series()
        answer = answer.to_frame("reason")
    if "reason" not in answer.columns:
        raise UserError(f"The user filter '{name}' returned a frame without the column 'reason'.")
    found: pa.Table = answer.with_row_index("row").filter(pl.col("reason").is_not_null()).to_arrow()
    return found


def _look_in(folder: str) -> None:
    """Lets modules be found in a folder too, after all others; a command has not the folder that it was called in."""
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()


@functools.lru_cache(maxsize=8)
def _module(plugin: Plugin, name: str) -> ModuleType:
    _look_in(plugin.folder)
    try:
        if plugin.source is None:
            return importlib.import_module(name)
        module = ModuleType(os.path.splitext(os.path.basename(plugin.path))[0])
        module.__file__ = plugin.path
        exec(compile(plugin.source, plugin.path, "exec"), module.__dict__)
        return module
    except Exception as error:
        raise UserError(
            f"The user filter '{plugin.function}' cannot be imported from '{plugin.path}': {type(error).__name__}: {error}."
        ) from error
