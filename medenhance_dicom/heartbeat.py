"""Which workers are alive: each counts up a row of the shared database, and the others watch the counts.

Nobody compares clocks: a worker is silent when its count stood still for long enough by the watcher's own monotonic
clock, so clocks that jump or differ between hosts recover nothing by mistake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import sqlalchemy as sa

GIVEN_UP = -1
"""Count of a worker that stopped, or that a person declared dead; it holds until the worker beats again."""


class Heartbeats:
    """The table of counts, made where it is missing; beside DBOS's own tables, in SQLite or PostgreSQL.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: From every method, while the database cannot be reached.
    """

    def __init__(self, database: str) -> None:
        """Args: database: SQLAlchemy URL; DBOS has made its schema."""
        url = sa.make_url(database)
        self._sqlite = url.drivername.startswith("sqlite")
        if not self._sqlite:
            url = url.set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(url, pool_pre_ping=True, pool_size=2, max_overflow=0)
        self._table = "medenhance_workers" if self._sqlite else "dbos.medenhance_workers"
        with self._engine.begin() as connection:
            if not self._sqlite:  # two workers that start at once must not both create it
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305823)"))
            connection.execute(
                sa.text(f"CREATE TABLE IF NOT EXISTS {self._table} (executor VARCHAR(255) PRIMARY KEY, beats BIGINT)")
            )

    def beat(self, executor: str) -> None:
        """Count up."""
        self._set(executor, f"{self._table}.beats + 1")

    def give_up(self, executor: str) -> None:
        """Say that a worker is dead: its work is for the others, at once."""
        self._set(executor, str(GIVEN_UP))

    def counts(self) -> dict[str, int]:
        """Worker -> count."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.text(f"SELECT executor, beats FROM {self._table}"))  # noqa: S608 - constant
            return {row.executor: row.beats for row in rows}

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _set(self, executor: str, beats: str) -> None:
        statement = (
            f"INSERT INTO {self._table} (executor, beats) VALUES (:executor, :first) "  # noqa: S608 - constants
            f"ON CONFLICT (executor) DO UPDATE SET beats = {beats}"
        )
        first = GIVEN_UP if beats == str(GIVEN_UP) else 0
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement), {"executor": executor, "first": first})


class Watch:
    """How long each count has stood still."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: seconds: of standing still that mean death; clock: monotonic."""
        self._seconds, self._clock = seconds, clock
        self._seen: dict[str, tuple[int | None, float]] = {}

    def silent(self, counts: Mapping[str, int | None]) -> list[str]:
        """Those whose count did not change for `seconds`, or that were given up; None: never beat at all."""
        now = self._clock()
        self._seen = {
            name: self._seen[name] if name in self._seen and self._seen[name][0] == count else (count, now)
            for name, count in counts.items()
        }
        return sorted(
            name for name, (count, since) in self._seen.items() if count == GIVEN_UP or now - since >= self._seconds
        )

    def reset(self) -> None:
        """Begin anew, after a time in which nothing could be seen."""
        self._seen = {}
