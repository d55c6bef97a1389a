"""Which of the fleet's processes are at work: each keeps a lease that it renews."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock
from virtfleet.models import Lease

PROCESSES = ("worker", "observer", "controller")


def missing(session: Session) -> list[str]:
    """Return the processes of which none holds a lease that is still good."""
    alive = session.scalars(select(Lease.name).where(Lease.until > clock.now())).all()
    return [process for process in PROCESSES if not any(_is(process, name) for name in alive)]


def _is(process: str, lease: str) -> bool:
    return lease == process or lease.startswith(f"{process}:")
