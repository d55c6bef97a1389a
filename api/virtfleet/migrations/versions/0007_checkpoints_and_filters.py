"""Checkpoints of machines, and the network filters of their cards."""

import sqlalchemy as sa
from alembic import op
from virtfleet.models import base

revision = "0007_checkpoints_and_filters"
down_revision = "0005_backups"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("vm_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=True),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("made_at", base.UtcDateTime(), nullable=False),
        sa.Column("observed_at", base.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name=op.f("fk_checkpoints_vm_id_vms"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("vm_id", "name", name=op.f("uq_checkpoints_vm_id")),
    )
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_checkpoints_vm_id"), ["vm_id"], unique=False)
    with op.batch_alter_table("addresses", schema=None) as batch_op:
        batch_op.add_column(sa.Column("filter", sa.String(), nullable=True))


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("addresses", schema=None) as batch_op:
        batch_op.drop_column("filter")
    op.drop_table("checkpoints")
