"""Names of columns that look into objects: `answers.text` is the `text` of the object `answers`, unless a column is called so.

Through a list of objects a path gives a list, with one item for each of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from datakit.errors import UserError

Record = Mapping[str, Any]


def look_up(record: Record, name: str) -> Any:
    """The value of a column, or at a path; None where there is none."""
    if name in record or "." not in name:
        return record.get(name)
    for head, rest in _splits(name):
        if head in record:
            return _inside(record[head], rest)
    return None


def _splits(name: str) -> Iterable[tuple[str, list[str]]]:
    """The ways to read a name as a column and a path into it; the longest column first."""
    parts = name.split(".")
    return ((".".join(parts[:end]), parts[end:]) for end in range(len(parts) - 1, 0, -1))


def _inside(value: Any, path: list[str]) -> Any:
    for depth, part in enumerate(path):
        if isinstance(value, list):
            return [_inside(item, path[depth:]) for item in value]
        value = value.get(part) if isinstance(value, dict) else None
    return value


def there(record: Record, name: str) -> bool | None:
    """Whether a record has this column or path. None: a null or an empty list on the way leaves it open."""
    if name in record:
        return True
    for head, rest in _splits(name):
        if head in record:
            return _reaches(record[head], rest)
    return False


def _reaches(value: Any, path: list[str]) -> bool | None:
    if not path:
        return True
    if isinstance(value, list):
        found = {_reaches(item, path) for item in value}
        return True if True in found else False if False in found else None
    if isinstance(value, dict):
        return _reaches(value[path[0]], path[1:]) if path[0] in value else False
    return None if value is None else False


def column_of(name: str, columns: Collection[str]) -> str:
    """The column that a name reads: itself, or the one whose inside it names."""
    return name if name in columns else next((head for head, _ in _splits(name) if head in columns), name)


def names_in(schema: pa.Schema) -> list[str]:
    """The columns of a schema, each followed by the paths into it."""
    return [name for field in schema for name in _names(field.name, field.type)]


def _names(name: str, kind: pa.DataType) -> list[str]:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    inner = [kind.field(number) for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    return [name, *(path for field in inner for path in _names(f"{name}.{field.name}", field.type))]


def names_of(record: Record) -> list[str]:
    """The columns of a record, each followed by the paths into it that its values show."""
    names: list[str] = []
    for name, value in record.items():
        item = next((item for item in value if item), None) if isinstance(value, list) else value
        names.append(name)
        if isinstance(item, dict):
            names += [f"{name}.{inner}" for inner in names_of(item)]
    return names


def check_columns(wanted: Iterable[str], found: Collection[str], file: str) -> None:
    """Raises a UserError for the first wanted column or path that is not among the names `found` in `file`."""
    for name in wanted:
        if name not in found:
            head = next((head for head, _ in _splits(name) if head in found), None)
            if head is None:
                shown = [other for other in found if not any(upper in found for upper, _ in _splits(other))]
            else:
                shown = [other for other in found if other.startswith(f"{head}.")] or [head]
            listed = ", ".join(f"'{_printable(other)}'" for other in shown[:30]) or "none"
            near = difflib.get_close_matches(name, shown, n=1, cutoff=0.5)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            # A whole header in one name.
            if len(found) == 1 and (marks := [mark for mark in ";\t|," if mark in shown[0]]):
                guess = f" If its fields are separated by {marks[0]!r}, give that as the delimiter."
            raise UserError(f"'{file}' has no column '{name}'; its columns are: {listed}.{guess}")


def _printable(name: str) -> str:
    cut = name[:60] + ("..." if len(name) > 60 else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
