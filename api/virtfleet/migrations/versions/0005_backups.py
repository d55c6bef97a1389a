"""Backups of machines."""

import sqlalchemy as sa
from alembic import op
from virtfleet.models import base

revision = "0005_backups"
down_revision = "0004_snapshots"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "backups",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("vm_id", sa.String(), nullable=True),
        sa.Column("vm_uuid", sa.String(), nullable=False),
        sa.Column("vm_name", sa.String(), nullable=False),
        sa.Column("libvirt_name", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("quiesced", sa.Boolean(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("made_at", base.UtcDateTime(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("created_at", base.UtcDateTime(), nullable=False),
        sa.Column("updated_at", base.UtcDateTime(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_backups_host_id_hosts"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_backups_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_backups_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backups")),
        sa.UniqueConstraint("host_id", "pool", "vm_uuid", "name", name=op.f("uq_backups_host_id")),
    )
    with op.batch_alter_table("backups", schema=None) as batch_op:
        for column in ("host_id", "owner_id", "project_id", "vm_id", "vm_uuid"):
            batch_op.create_index(batch_op.f(f"ix_backups_{column}"), [column], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_table("backups")
