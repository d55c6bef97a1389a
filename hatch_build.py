"""Puts what lies outside api/virtfleet into the wheel.

As a hook and not as `force-include` in pyproject.toml, since that would copy these folders in an editable install too,
and two copies of the collection on the path confuse Ansible.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class OutsideFolders(BuildHookInterface):
    """Adds the collection where ansible-core finds it, and the other folders inside the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a standard build; an editable one uses those of the checkout."""
        if version == "standard":
            build_data["force_include"] |= {
                "collections/ansible_collections/virtfleet": "ansible_collections/virtfleet",
                "playbooks": "virtfleet/_share/playbooks",
                "roles": "virtfleet/_share/roles",
                "inventories/example": "virtfleet/_share/inventories/example",
                "requirements": "virtfleet/_share/requirements",
            }
