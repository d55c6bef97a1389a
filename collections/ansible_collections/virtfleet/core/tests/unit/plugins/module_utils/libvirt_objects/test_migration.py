# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at two hosts of which one changes meanwhile: what a run that died has left goes by itself, at any moment."""

from __future__ import annotations

from collections.abc import Iterator

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import migration
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

GOAL = "migrate machine mover"


@pytest.fixture
def gone() -> Iterator[libvirt.virDomain]:
    """A machine that was there when it was found, and is there no longer."""
    connection = libvirt.open("test:///default")
    domain = connection.defineXML(
        "<domain type='test'><name>mover</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    )
    domain.undefine()
    yield domain
    connection.close()


def test_a_machine_that_goes_while_it_is_looked_at_is_looked_for_again(gone: libvirt.virDomain) -> None:
    looks = iter([gone.state, gone.state, lambda: migration.Moved(True, {}, "source")])

    def look() -> migration.Moved:
        return next(looks)()  # type: ignore[no-any-return]

    assert migration._as_they_are(look, Deadline(60), GOAL).changed
    assert next(looks, None) is None


def test_what_never_ends_ends_with_the_deadline_in_a_sentence(gone: libvirt.virDomain) -> None:
    with pytest.raises(VirtfleetError, match=GOAL) as caught:
        migration._as_they_are(gone.state, Deadline(0), GOAL)
    assert caught.value.code == "not_found"
