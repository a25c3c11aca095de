"""Answers that were paid for, kept by the digest of everything that decided them. Only the process that asks opens this file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fsspec.implementations.local import LocalFileSystem

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.synthesis.engines import Answer

NAME = "requests.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (step TEXT NOT NULL, kind TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (step, kind));
"""
_CHUNK = 500


def is_there(cache: str) -> bool:
    """Whether anything was ever asked with this cache."""
    return storage.exists(storage.join(cache, NAME))


class RequestCache:
    """`<cache>/requests.sqlite`. Every batch of answers is one commit, so that a kill at any moment loses no finished request."""

    def __init__(self, cache: str) -> None:
        fs, inner = storage.filesystem(cache)
        if not isinstance(fs, LocalFileSystem):
            raise UserError(
                f"'cache' is '{cache}', and synthesis keeps its answers in a local folder. Give a local path as 'cache'."
            )
        self.path = os.path.join(inner, NAME)
        try:
            os.makedirs(inner, exist_ok=True)
        except OSError as error:
            raise storage.failure(error, inner) from error
        with self._sentences():
            # The thread may change (a notebook asks from a second one), but there is never more than one at a time.
            self._connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            # WAL with NORMAL: a commit is whole whenever the process ends; only a power cut can lose the last ones.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_TABLES)

    def answers(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are known, by key."""
        found: dict[str, Answer] = {}
        with self._sentences():
            for start in range(0, len(keys), _CHUNK):
                some = keys[start : start + _CHUNK]
                marks = ",".join("?" * len(some))
                columns = "key, text, finish_reason, prompt_tokens, completion_tokens"
                for key, *fields in self._connection.execute(f"SELECT {columns} FROM answers WHERE key IN ({marks})", some):
                    found[key] = Answer(*fields)
        return found

    def keep(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Keeps answers, all or none of them. The first answer to a request stays."""
        rows = [(key, each.text, each.finish_reason, each.prompt_tokens, each.completion_tokens) for key, each in answers]
        with self._sentences():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def count_failure(self, step: str, kind: str) -> None:
        """Counts a failed attempt of a step; the counts outlive the process."""
        with self._sentences():
            self._connection.execute(
                "INSERT INTO failures VALUES (?, ?, 1) ON CONFLICT (step, kind) DO UPDATE SET count = count + 1", (step, kind)
            )

    def failures(self, step: str) -> dict[str, int]:
        """Failed attempts of a step by kind, over all runs."""
        with self._sentences():
            query = "SELECT kind, count FROM failures WHERE step = ? ORDER BY kind"
            return dict(self._connection.execute(query, (step,)).fetchall())

    def bytes_of_an_answer(self) -> float | None:
        """About how many bytes of the file one answer takes, from a thousand of them; None where there is none."""
        with self._sentences():
            query = "SELECT avg(length(CAST(text AS BLOB)) + length(key)) FROM (SELECT key, text FROM answers LIMIT 1000)"
            (mean,) = self._connection.execute(query).fetchone()
        # Keys come in no order, so that the pages of the file are about two thirds full.
        return None if mean is None else (mean + 16) * 1.5

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise BuildError(
                    f"The disk is full: '{self.path}' could not be written. Finished work is kept; make room and run the same "
                    "command again."
                ) from error
            raise BuildError(f"The file of answers '{self.path}' cannot be used: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise BuildError(
                f"The file of answers '{self.path}' is damaged ({error}). Move it away to ask all requests again, or restore it."
            ) from error
