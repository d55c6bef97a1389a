"""Secrets at rest: encrypted with a key that lies beside the database, never in it."""

import contextlib
import os
import tempfile
from pathlib import Path

from cryptography.fernet import Fernet
from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.ids import new_id
from virtfleet.jobs import kinds
from virtfleet.models import Secret
from virtfleet.services.auth import Principal


def _key() -> bytes:
    path = settings.load().home / "secret.key"
    if not path.exists():
        # Linked into place whole: whoever comes second uses the first one's key.
        descriptor, draft = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        Path(draft).unlink()
    return path.read_bytes()


def keep(session: Session, who: Principal, purpose: str, content: str, vm_id: str | None = None) -> str:
    """Encrypt and store `content`; return the reference to it."""
    row = Secret(
        id=new_id("sec"),
        project_id=who.project_id,
        owner_id=who.user_id,
        purpose=purpose,
        ciphertext=Fernet(_key()).encrypt(content.encode()),
        vm_id=vm_id,
    )
    session.add(row)
    return row.id


@kinds.secret_reader
def reveal(session: Session, secret_id: str) -> bytes:
    """Return what was kept under the reference. Raises LookupError when it is gone."""
    row = session.get(Secret, secret_id)
    if row is None:
        raise LookupError(f"secret {secret_id} is gone")
    return Fernet(_key()).decrypt(row.ciphertext)
