"""Images: registered once with their checksum, copied into a pool when a machine first needs them there."""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.virtfleet.core.plugins.module_utils import image_source
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from sqlalchemy import select
from sqlalchemy.orm import Session

from virtfleet import clock, names, settings
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.jobs import kinds, lifecycle
from virtfleet.jobs.kinds import Outcome
from virtfleet.models import UNFINISHED, Host, Image, ImageCopy, Job
from virtfleet.services import ledger
from virtfleet.services.auth import Principal
from virtfleet.services.lookup import find

READ_SECONDS = 1800.0
"""How long reading an image file for its checksum may take."""


@dataclass(frozen=True)
class NewImage:
    """An image that is to be registered; `source` is a path on the controller or a URL."""

    source: str
    name: str | None = None
    checksum: str | None = None
    os: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Facts:
    """What was read from an image file. Sizes are bytes."""

    checksum: str
    format: str
    size_bytes: int
    virtual_size_bytes: int


def inspect(new: NewImage) -> Facts:
    """Read a local image file; of a URL only its checksum is known. Call it outside of any transaction.

    Raises Problem `invalid` for a file that is missing, is no image or has another checksum, and for a URL without one.
    """
    try:
        checksum = image_source.check_checksum(new.checksum) if new.checksum else None
        if names.is_url(new.source):
            return _promised(image_source.check_url(new.source), checksum)
        path = Path(new.source)
        if not path.is_absolute() or "\0" in new.source or not new.source.isprintable():
            raise Problem(
                "invalid",
                "The source of the image is neither an absolute path on the controller nor an http or https URL.",
                "Give a path such as /srv/images/debian-12.qcow2.",
                errors=[{"field": "source", "message": "not a path or URL"}],
            )
        _refuse_own_files(path)
        wanted = f"register the image {names.of_image(new.source)[:63]!r}"
        deadline = Deadline(READ_SECONDS)
        with image_source.local_file(
            new.source, asked_format=None, checksum=checksum, wanted=wanted, deadline=deadline
        ) as source:
            return Facts(source.checksum, source.image.format, source.size_bytes, source.image.virtual_size_bytes)
    except VirtfleetError as error:
        raise Problem(
            "invalid", str(error), error.hint, errors=[{"field": "source", "message": error.obstacle}]
        ) from error


def _promised(url: str, checksum: str | None) -> Facts:
    """Return what is known of an image before anybody has fetched it: what its checksum says it must be."""
    if checksum is None or urlsplit(url).query:
        what = "has no checksum" if checksum is None else "has a query, which may hold a secret"
        raise Problem(
            "invalid",
            f"The image of this URL {what}.",
            "Give the URL without a query, and checksum: sha256: and 64 hex digits, as its publisher tells.",
            errors=[{"field": "checksum" if checksum is None else "source", "message": what}],
        )
    return Facts(checksum, "", 0, 0)


def _refuse_own_files(path: Path) -> None:
    """The fleet's database, keys and tokens are no images, whatever their bytes look like."""
    try:
        real, home = path.resolve(), settings.load().home.resolve()
        ours = real.is_relative_to(home) and not real.is_relative_to(settings.load().images.resolve())
        device = not stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError):
        return  # the reader says what is wrong
    if ours or device:
        raise Problem("invalid", "This file is not an image that may be registered.", "Give an image file.")


def register(session: Session, who: Principal, new: NewImage, facts: Facts, number: int | None = None) -> Image:
    """Make an image known. Raises Problem `already_exists`."""
    name = names.check(new.name or names.of_image(new.source), "image")
    taken = select(Image.id).where(Image.project_id == who.project_id, Image.name == name)
    if session.scalar(taken) is not None:
        raise Problem("already_exists", f"There is an image {name!r} already.", "Choose another name.")
    row = Image(
        id=new_id("img"),
        number=ledger.next_number(session, "image", number),
        name=name,
        source=new.source,
        checksum=facts.checksum,
        format=facts.format,
        size_bytes=facts.size_bytes,
        virtual_size_bytes=facts.virtual_size_bytes,
        os=new.os,
        version=new.version,
        project_id=who.project_id,
        owner_id=who.user_id,
    )
    session.add(row)
    session.flush()
    ledger.audit(session, who, "image.create", row.id)
    ledger.changed(session, "image", row.id, "created", who.project_id, name=name)
    return row


def choose(session: Session, who: Principal, ref: str | None) -> Image:
    """Return the image asked for, or the first one; none that is being removed. Raises Problem."""
    if ref is not None:
        image = find(session, Image, "image", ref, who)
        removal = removal_of(session, image)
        if removal is not None:
            hint = f"Use another one, or wait for the job {removal.id} and register it again."
            raise Problem("not_ready", f"Image {image.name!r} is being removed.", hint)
        return image
    mine = select(Image).where(Image.project_id == who.project_id).order_by(Image.number)
    for image in session.scalars(mine):
        if removal_of(session, image) is None:
            return image
    raise Problem("not_ready", "The fleet has no image yet.", "Add one: virtfleet image add FILE.")


def removal_of(session: Session, image: Image) -> Job | None:
    """Return the job that is removing the image, if there is one."""
    removing = (ImageCopy.image_id == image.id, Job.kind == "image.remove", Job.state.in_(UNFINISHED))
    return session.scalars(select(Job).join(ImageCopy, ImageCopy.job_id == Job.id).where(*removing)).first()


def base_lock(place: str, pool: str, image: Image) -> str:
    """Return the lock of a base volume: equal images share one, and it comes and goes in the order of the requests."""
    return f"base:{place}:{pool}:{image.volume}"


def ensure_copy(session: Session, who: Principal, image: Image, host: Host, pool: str, *, shared: bool) -> str | None:
    """See to it that the image's base volume is, or will be, in the pool; return the job to wait for, if any."""
    place = host.zone_id if shared else host.id
    where = (ImageCopy.image_id == image.id, ImageCopy.place == place, ImageCopy.pool == pool)
    copy = session.scalar(select(ImageCopy).where(*where))
    if copy is not None and copy.ready_at is not None:
        return None
    if copy is not None and copy.job_id is not None:
        job = session.get(Job, copy.job_id)
        if job is not None and job.state in UNFINISHED:
            return job.id
    if copy is None:
        copy = ImageCopy(id=new_id("cpy"), image_id=image.id, place=place, pool=pool)
        session.add(copy)
    wanted: dict[str, Any] = {
        "name": image.volume,
        "pool": pool,
        "url" if names.is_url(image.source) else "src": image.source,
        "checksum": image.checksum,
        **({"format": image.format} if image.format else {}),
    }
    made = lifecycle.submit(
        session,
        "image.import",
        project_id=who.project_id,
        owner_id=who.user_id,
        host_ids=[host.id],
        variables={"virtfleet_image": wanted},
        subjects=[{"type": "image", "id": image.id, "name": image.name}],
        context={"copy": copy.id},
        exclusive=[base_lock(place, pool, image)],
    )
    copy.job_id = made.id
    session.flush()
    return made.id


@kinds.finisher("image.import")
def imported(session: Session, job: Job, outcome: Outcome) -> None:
    """Note that the copy is there; one that failed is forgotten, so that the next machine tries again."""
    copy = session.get(ImageCopy, job.context["copy"])
    if copy is None or copy.job_id != job.id:
        return
    if outcome.state == "succeeded":
        copy.job_id, copy.ready_at = None, clock.now()
        _learn(session, copy, outcome)
    else:
        session.delete(copy)


def _learn(session: Session, copy: ImageCopy, outcome: Outcome) -> None:
    """Note the format and sizes of an image that nobody had seen before it was fetched."""
    image = session.get(Image, copy.image_id)
    told = [result["image"] for result in outcome.result.values() if result and result.get("image")]
    found: dict[str, Any] = told[0] if told else {}
    if image is not None and not image.format and found.get("complete"):
        image.format = found["format"]
        image.size_bytes = found["size_bytes"]
        image.virtual_size_bytes = found["virtual_size_bytes"]
        image.generation += 1
        ledger.changed(session, "image", image.id, "updated", image.project_id, name=image.name)


def forget_copy(session: Session, image_id: str, host: Host, pool: str) -> None:
    """Forget that a pool has a copy, since it turned out that it has not."""
    for copy in session.scalars(
        select(ImageCopy).where(
            ImageCopy.image_id == image_id, ImageCopy.pool == pool, ImageCopy.place.in_([host.id, host.zone_id])
        )
    ):
        session.delete(copy)
    session.flush()
