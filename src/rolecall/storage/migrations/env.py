"""Run the migrations on the connection that `schema.upgrade_schema` passes."""

from alembic import context

from rolecall.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
