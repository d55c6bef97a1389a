"""What a machine may be changed to while it runs, and the disks that were attached to it."""

import sqlalchemy as sa
from alembic import op

revision = "0003_changing_vms"
down_revision = "0002_moves"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    with op.batch_alter_table("vms", schema=None) as batch_op:
        batch_op.add_column(sa.Column("max_vcpus", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("max_memory_bytes", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("attached", sa.JSON(), nullable=False, server_default="[]"))
