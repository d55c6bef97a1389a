# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module is going to change: the difference of what is and what is wanted. `changed` comes from here alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class Update:
    """What is to be changed of a thing that has a kept definition and, while it runs, a live one.

    `changes` are to be made. `pending` are in the kept definition already, but not in the live one and cannot come into
    it: they hold from the next boot. `beyond` can be had only by making the thing anew, and are left.
    """

    changes: tuple[Change, ...] = ()
    pending: tuple[Change, ...] = ()
    beyond: tuple[Change, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.changes)

    @property
    def next_boot(self) -> tuple[Change, ...]:
        """What does not hold before the next boot."""
        return (*(change for change in self.changes if change.effect == NEXT_BOOT), *self.pending)

    def names(self, effect: str | None = None) -> list[str]:
        """Return the first parts of the names of what is to be changed, each once; with `effect`, only of such."""
        chosen = (change for change in self.changes if effect in (None, change.effect))
        return list(dict.fromkeys(change.what.partition(".")[0] for change in chosen))

    def cycled(self) -> Update:
        """Return the update when the power is cycled as well: what is pending comes to hold by that."""
        return Update((*self.changes, *self.pending), (), self.beyond)

    def as_list(self) -> list[dict[str, Any]]:
        """Return the changes to be made, and those that are beyond it, as plain data."""
        return [change.as_dict() for change in (*self.changes, *self.beyond)]


EffectOf = Callable[[str, Any, Any], str]
"""(name of a setting, its whole value now, its wanted one) → live, next_boot or recreate."""


def update(wanted: State, kept: State | None, live: State | None, effect_of: EffectOf) -> Update:
    """Return what leads a thing to `wanted`, the settings that somebody named; all others are left as they are.

    `kept` is the definition (None: it has none and ends with its power), `live` what runs (None: nothing does). A
    setting whose live value cannot be known is left out of `live`: then the kept one alone decides.
    """
    changes: list[Change] = []
    pending: list[Change] = []
    beyond: list[Change] = []
    for name, value in wanted.items():
        in_kept = _of_one(name, kept, value)
        in_live = _of_one(name, live, value)
        missing_live = {what for what, _old, _new in in_live}
        for what, old, new in [*in_kept, *(each for each in in_live if each[0] not in {k[0] for k in in_kept})]:
            now = (kept if live is None or name not in live else live) or {}
            holds_already = live is not None and name in live and what not in missing_live
            effect = LIVE if holds_already else effect_of(name, now.get(name), value)
            change = Change(what, old, new, effect)
            if effect == RECREATE:
                beyond.append(change)
            elif effect == LIVE or any(what == each[0] for each in in_kept):
                changes.append(change)
            else:
                pending.append(change)
    return Update(tuple(changes), tuple(pending), tuple(beyond))


def _of_one(name: str, state: State | None, value: Any) -> list[tuple[str, Any, Any]]:
    if state is None or name not in state:
        return []
    return _differences({name: state[name]}, {name: value}, "")
