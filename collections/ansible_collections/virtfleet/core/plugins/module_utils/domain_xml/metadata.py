# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What virtfleet writes into a machine's `<metadata>`, so that everything can be rebuilt from the hosts.

One element of our namespace holds the values as JSON text: any JSON value survives the way there and back.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

NAMESPACE = "urn:virtfleet:vm:1"
TAG = f"{{{NAMESPACE}}}vm"
OWN = ("made_volumes", "detached_volumes", "fixed_addresses")
"""Lists that virtfleet keeps there for itself, beside what the user wants to have written."""

ET.register_namespace("virtfleet", NAMESPACE)


def build(values: dict[str, Any]) -> ET.Element:
    """Return the element that carries `values`. Raises VirtfleetError `invalid` for what JSON cannot say."""
    try:
        # ASCII only, so that no character that XML 1.0 forbids can stand in the document.
        text = json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise VirtfleetError(
            "write the metadata of a machine",
            f"a value cannot be written as JSON ({error})",
            "Use text, numbers, booleans, lists and mappings with text as keys.",
            "invalid",
        ) from error
    element = ET.Element(TAG)
    element.text = text
    return element


def read(domain_xml: str) -> dict[str, Any]:
    """Return the values in a domain's XML; empty for a machine that is not ours, or whose element is broken."""
    return of(ET.fromstring(domain_xml))


def of(root: ET.Element) -> dict[str, Any]:
    """Return the values in a `<domain>` element, as `read` does."""
    kept = root.find("metadata")
    element = kept.find(TAG) if kept is not None else None
    if element is None or not element.text:
        return {}
    try:
        values = json.loads(element.text)
    except (ValueError, RecursionError):  # the latter for what is nested too deep
        return {}
    return values if isinstance(values, dict) else {}
