"""Runs the migrations on the connection that `schema.upgrade_schema` hands in."""

from alembic import context

from rolecall.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
