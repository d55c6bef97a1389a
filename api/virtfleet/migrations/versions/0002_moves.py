"""Moves: machines on their way to another host."""

import sqlalchemy as sa
from alembic import op
from virtfleet.models import base

revision = "0002_moves"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "moves",
        sa.Column("vm_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("target_id", sa.String(), nullable=False),
        sa.Column("created_at", base.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_moves_job_id_jobs"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["target_id"], ["hosts.id"], name=op.f("fk_moves_target_id_hosts")),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name=op.f("fk_moves_vm_id_vms"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_moves")),
    )
    with op.batch_alter_table("moves", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_moves_job_id"), ["job_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_moves_target_id"), ["target_id"], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_table("moves")
