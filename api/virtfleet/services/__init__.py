"""What the product does, one noun a file. No Flask here: routes, S1's front door and the worker all call these.

Importing the package registers what the services do when their jobs end.
"""

from virtfleet.services import (
    evacuation,
    guests,
    host_networks,
    host_secrets,
    hosts,
    image_removal,
    images,
    nwfilters,
    secrets,
    vms,
)

__all__ = [
    "evacuation",
    "guests",
    "host_networks",
    "host_secrets",
    "hosts",
    "image_removal",
    "images",
    "nwfilters",
    "secrets",
    "vms",
]
