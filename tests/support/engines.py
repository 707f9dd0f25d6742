"""The SQLAlchemy engine of a storage, for tests that observe statements or change the database directly."""

from sqlalchemy import Engine

from rolecall.storage import Storage


def engine_of(storage: Storage) -> Engine:
    """Return the storage's engine."""
    return storage._engine
