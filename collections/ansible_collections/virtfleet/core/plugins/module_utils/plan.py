# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module is going to change: the difference of what is and what is wanted. `changed` comes from here alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIVE = "live"
NEXT_BOOT = "next_boot"
RECREATE = "recreate"

State = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One value that differs. `effect` says when the new value holds: live, next_boot, or only by recreate."""

    what: str
    before: Any
    after: Any
    effect: str = LIVE

    def as_dict(self) -> dict[str, Any]:
        """Return the members of an entry of a module's `plan`."""
        return {"what": self.what, "before": self.before, "after": self.after, "effect": self.effect}


@dataclass(frozen=True)
class Plan:
    """An ordered list of changes, with the two states they lie between (None: the thing does not exist)."""

    changes: tuple[Change, ...]
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None

    @property
    def changed(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.changes)

    def touches(self, *names: str) -> bool:
        """Whether one of the changes is about one of `names` or something under it (`a` covers `a.b`)."""
        return any(c.what == name or c.what.startswith(name + ".") for c in self.changes for name in names)

    def with_effect(self, effect: str) -> list[Change]:
        """Return the changes that hold at `effect`."""
        return [change for change in self.changes if change.effect == effect]

    def as_list(self) -> list[dict[str, Any]]:
        """Return the changes as plain data."""
        return [change.as_dict() for change in self.changes]


def compare(before: State | None, after: State | None, effects: Mapping[str, str] | None = None) -> Plan:
    """Return the plan that leads from `before` to `after`: two whole states of one thing, or None where there is none.

    Dicts are compared key by key (`memory.max`), everything else, lists included, as one value. `effects` names the
    effect of a change by its key, the longest key that covers it; what is not named is live.
    A key that is absent counts as None: an option that nobody set must be filled from `before` by the caller.
    """
    kept_before = None if before is None else dict(before)
    kept_after = None if after is None else dict(after)
    if before is None or after is None:
        changes = [] if before is after else [Change("exists", before is not None, after is not None)]
        return Plan(tuple(changes), kept_before, kept_after)
    changes = [
        Change(what, old, new, _effect(what, effects or {})) for what, old, new in _differences(before, after, "")
    ]
    return Plan(tuple(changes), kept_before, kept_after)


def _differences(before: State, after: State, prefix: str) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((f"{prefix}{key}", old, new))
    return found


def _effect(what: str, effects: Mapping[str, str]) -> str:
    covering = [key for key in effects if what == key or what.startswith(key + ".")]
    return effects[max(covering, key=len)] if covering else LIVE
