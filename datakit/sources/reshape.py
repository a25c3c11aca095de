"""What is done to each record by itself before its columns are mapped: conditions, and lists that are unpacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datakit.recipe import Unpack, Where
from datakit.sources.paths import Record, look_up
from datakit.sources.records import EMPTY_FIELD, NOT_A_LIST, UNEQUAL_LISTS, Unreadable, shown
from datakit.sources.wanted import Where as Wanted

# A record, and whether the recipe wants it.
Shaped = tuple[Record | Unreadable, bool]


class Shaper:
    """Gives the records that come of one. A condition on an unpacked column holds for the items, not for the list."""

    def __init__(self, where: Where, unpacking: Sequence[Unpack]) -> None:
        self._unpacking = unpacking
        conditions: list[Where] = [{} for _ in range(len(unpacking) + 1)]
        for name, wanted in where.items():
            stages = [
                number
                for number, shape in enumerate(unpacking, start=1)
                if any(name == column or name.startswith(f"{column}.") for column in shape.columns)
            ]
            conditions[stages[-1] if stages else 0][name] = wanted
        self._wanted = [Wanted(condition) for condition in conditions]

    def __call__(self, record: Record) -> Iterator[Shaped]:
        if self._wanted[0](record):
            yield from self._unpacked(record, 0)
        else:
            yield record, False

    def _unpacked(self, record: Record, stage: int) -> Iterator[Shaped]:
        if stage == len(self._unpacking):
            yield record, True
            return
        shape, wanted = self._unpacking[stage], self._wanted[stage + 1]
        try:
            items = side_by_side(record, shape.columns)
        except Unreadable as error:
            yield error, True
            return
        if shape.keep == "first":
            fitting = next(filter(wanted, items), None)
            if fitting is None:
                yield record, False
            else:
                yield from self._unpacked(fitting, stage + 1)
            return
        for item in items:
            if wanted(item):
                yield from self._unpacked(item, stage + 1)
            else:
                yield item, False


def side_by_side(record: Record, columns: Sequence[str]) -> list[Record]:
    """One record for each item of the lists in `columns`, which stands where the list stood.

    Raises Unreadable for what is no list, for lists of different lengths, and for empty ones.
    """
    lists = []
    for column in columns:
        value = look_up(record, column)
        if value is None or value == []:
            raise _refused(record, EMPTY_FIELD, f"unpack: nothing in column '{column}'")
        if not isinstance(value, list):
            raise _refused(record, NOT_A_LIST, f"unpack: column '{column}' has {shown(repr(value))}")
        lists.append(value)
    if len({len(items) for items in lists}) > 1:
        lengths = ", ".join(f"'{column}' has {len(items)}" for column, items in zip(columns, lists, strict=True))
        raise _refused(record, UNEQUAL_LISTS, f"unpack: the lists are of different lengths: {lengths}")
    return [{**record, **dict(zip(columns, items, strict=True))} for items in zip(*lists, strict=True)]


def _refused(record: Record, reason: str, found: str) -> Unreadable:
    return Unreadable(reason, found, repr(record).encode("utf-8", "surrogatepass"))
