"""The tables of the control plane (SQLAlchemy). They know nothing above them."""

from virtfleet.models.backups import Backup
from virtfleet.models.base import Base
from virtfleet.models.checkpoints import Checkpoint
from virtfleet.models.hosts import Address, Host, Network, Zone
from virtfleet.models.images import Flavor, Image, ImageCopy
from virtfleet.models.jobs import UNFINISHED, Job, JobDependency, JobEvent, JobLock
from virtfleet.models.ledger import Audit, Change, Cursor, IdempotencyKey, Lease, Number, Secret
from virtfleet.models.moves import Move
from virtfleet.models.people import Project, Token, User
from virtfleet.models.snapshots import Snapshot
from virtfleet.models.vms import Vm

__all__ = [
    "UNFINISHED",
    "Address",
    "Audit",
    "Backup",
    "Base",
    "Change",
    "Checkpoint",
    "Cursor",
    "Flavor",
    "Host",
    "IdempotencyKey",
    "Image",
    "ImageCopy",
    "Job",
    "JobDependency",
    "JobEvent",
    "JobLock",
    "Lease",
    "Move",
    "Network",
    "Number",
    "Project",
    "Secret",
    "Snapshot",
    "Token",
    "User",
    "Vm",
    "Zone",
]
