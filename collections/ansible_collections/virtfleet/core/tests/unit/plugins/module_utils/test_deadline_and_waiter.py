# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for


def test_what_is_already_true_is_not_waited_for() -> None:
    assert wait_for(lambda: "ready", Deadline(0), "it") == "ready"


def test_a_deadline_that_passes_says_what_was_waited_for() -> None:
    with pytest.raises(VirtfleetError) as caught:
        wait_for(lambda: False, Deadline(0.05), "vm web1 to stop", poll=0.01)
    assert caught.value.code == "timeout"
    assert str(caught.value).startswith("Failed to wait for vm web1 to stop: it took longer than 0.05 s.")


def test_an_event_wakes_at_once_and_a_lost_one_is_found_by_polling() -> None:
    happened, states = threading.Event(), []

    def happen() -> None:
        states.append(1)
        happened.set()

    threading.Timer(0.05, happen).start()
    began = time.monotonic()
    assert wait_for(lambda: states, Deadline(5), "it", event=happened, poll=5) == [1]
    assert time.monotonic() - began < 2
    threading.Timer(0.05, lambda: states.append(2)).start()  # nobody tells
    assert wait_for(lambda: len(states) == 2, Deadline(5), "it", event=threading.Event(), poll=0.02)


def test_an_event_while_the_predicate_looks_is_not_lost() -> None:
    happened, looks = threading.Event(), []

    def look() -> bool:
        looks.append(1)
        if len(looks) == 1:
            happened.set()
        return len(looks) == 2

    began = time.monotonic()
    assert wait_for(look, Deadline(10), "it", event=happened, poll=10)
    assert time.monotonic() - began < 2


def test_the_predicates_own_error_goes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 // 0, Deadline(1), "it")


def test_a_part_of_a_deadline_never_ends_after_it() -> None:
    whole = Deadline(0.5)
    assert whole.at_most(10).left() <= 0.5
    assert whole.at_most(0.1).left() <= 0.1
    assert Deadline(0).passed
    assert not whole.passed
