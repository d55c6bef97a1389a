"""Volumes that people made, and their attachments."""

import sqlalchemy as sa
from alembic import op
from virtfleet.models import base

revision = "0006_volumes"
down_revision = "0005_backups"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("volume", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("shareable", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("explanation", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("created_at", base.UtcDateTime(), nullable=False),
        sa.Column("updated_at", base.UtcDateTime(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_volumes_host_id_hosts")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_volumes_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_volumes_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_volumes_project_id")),
    )
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        for column in ("host_id", "owner_id", "project_id", "state"):
            batch_op.create_index(batch_op.f(f"ix_volumes_{column}"), [column], unique=False)
    op.create_table(
        "attachments",
        sa.Column("volume_id", sa.String(length=40), nullable=False),
        sa.Column("vm_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.id"], name=op.f("fk_attachments_volume_id_volumes"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name=op.f("fk_attachments_vm_id_vms"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("volume_id", "vm_id", name=op.f("pk_attachments")),
    )
    with op.batch_alter_table("attachments", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_attachments_vm_id"), ["vm_id"], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_table("attachments")
    op.drop_table("volumes")
