"""The removal of images: first their base volumes in the hosts' pools, by a job, then their rows."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock
from virtfleet.errors import Problem
from virtfleet.jobs import kinds, lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import UNFINISHED, Host, Image, ImageCopy, Job, Vm
from virtfleet.services import images, ledger
from virtfleet.services.auth import Principal

MOST_NAMED = 20
"""Machines that a refusal names; the others are counted."""


def remove(session: Session, who: Principal, image: Image) -> Job | None:
    """Make the job that removes the image's base volumes from the pools; at its end the image is forgotten.

    None when no pool has one: then the image is forgotten already. Raises Problem `in_use` when machines were made from
    it, or when it is being copied to a host.
    """
    _refuse_if_used(session, image)
    removing = images.removal_of(session, image)
    if removing is not None:
        return removing
    copies = list(session.scalars(select(ImageCopy).where(ImageCopy.image_id == image.id)))
    _refuse_if_copied(session, image, copies)
    where = {copy.id: host for copy in copies if (host := _reached_by(session, image, copy)) is not None}
    for copy in copies:
        if copy.id not in where:
            session.delete(copy)
    session.flush()
    if not where:
        _forget(session, image)
        ledger.audit(session, who, "image.delete", image.id)
        return None
    going = [copy for copy in copies if copy.id in where]
    pools: dict[str, list[str]] = {}
    for copy in going:
        pools.setdefault(copy.pool, []).append(where[copy.id].name)
    job = lifecycle.submit(
        session,
        "image.remove",
        project_id=image.project_id,
        owner_id=who.user_id,
        host_ids=list(dict.fromkeys(host.id for host in where.values())),
        variables={
            "virtfleet_images": [{"name": image.volume, "pool": pool, "hosts": hosts} for pool, hosts in pools.items()]
        },
        subjects=[{"type": "image", "id": image.id, "name": image.name}],
        context={"image": image.id, "copies": {copy.id: where[copy.id].name for copy in going}},
        exclusive=[images.base_lock(copy.place, copy.pool, image) for copy in going],
    )
    for copy in going:
        copy.job_id, copy.ready_at = job.id, None
    image.generation += 1
    ledger.audit(session, who, "image.delete", image.id, job.id)
    ledger.changed(session, "image", image.id, "updated", image.project_id, name=image.name)
    return job


def _refuse_if_used(session: Session, image: Image) -> None:
    names = list(session.scalars(select(Vm.name).where(Vm.image_id == image.id).order_by(Vm.number)))
    if not names:
        return
    shown = ", ".join(names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    detail = f"The disks of these machines lie over image {image.name!r}: {shown}{more}."
    raise Problem("in_use", detail, "Delete them first.", vms=names[:MOST_NAMED])


def _refuse_if_copied(session: Session, image: Image, copies: Iterable[ImageCopy]) -> None:
    busy = [copy.job_id for copy in copies if copy.job_id is not None]
    open_one = session.scalar(select(Job.id).where(Job.id.in_(busy), Job.state.in_(UNFINISHED)).limit(1))
    if open_one is not None:
        raise Problem(
            "in_use", f"Image {image.name!r} is being copied to a host by the job {open_one}.", "Wait for its end."
        )


def _reached_by(session: Session, image: Image, copy: ImageCopy) -> Host | None:
    """Return the host by which a base volume is removed; None when it stays.

    It stays when its host is no longer one of ours, and when an equal image has the same base volume there.
    """
    equal = (
        select(ImageCopy.id)
        .join(Image, Image.id == ImageCopy.image_id)
        .where(ImageCopy.place == copy.place, ImageCopy.pool == copy.pool)
        .where(Image.checksum == image.checksum, Image.id != image.id)
    )
    if session.scalar(equal.limit(1)) is not None:
        return None
    host = session.get(Host, copy.place)
    if host is not None:
        return host
    # A pool that the hosts of a zone share: any of them will do, best one that answers.
    shared_by = session.scalars(select(Host).where(Host.zone_id == copy.place).order_by(Host.state.desc(), Host.number))
    return next((host for host in shared_by if _shares(host.info, copy.pool)), None)


def _shares(info: Mapping[str, Any], pool: str) -> bool:
    return any(each["name"] == pool and each.get("shared") for each in info.get("pools", []))


@kinds.finisher("image.remove")
def removed(session: Session, job: Job, outcome: Outcome) -> None:
    """Forget the copies that are gone, and with the last one the image. What is still there can be used again."""
    image = session.get(Image, job.context["image"])
    gone = {
        (host, each["pool"]) for host, result in outcome.result.items() for each in (result or {}).get("removed") or []
    }
    for copy_id, host in job.context["copies"].items():
        copy = session.get(ImageCopy, copy_id)
        if copy is None:
            continue
        if (host, copy.pool) in gone:
            session.delete(copy)
        else:
            copy.job_id, copy.ready_at = None, clock.now()
    session.flush()
    if image is None:
        return
    if session.scalar(select(ImageCopy.id).where(ImageCopy.image_id == image.id).limit(1)) is None:
        _forget(session, image)
    else:
        image.generation += 1
        ledger.changed(session, "image", image.id, "updated", image.project_id, name=image.name)


def _forget(session: Session, image: Image) -> None:
    ledger.changed(session, "image", image.id, "deleted", image.project_id, name=image.name)
    session.delete(image)
    session.flush()
