"""How Alembic reaches the fleet's database; run by Alembic, never imported."""

from alembic import context

from virtfleet import database
from virtfleet.models import Base

with database.engine().connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        user_module_prefix="base.",
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
