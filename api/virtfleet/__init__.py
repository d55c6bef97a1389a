"""virtfleet: the control plane of a libvirt cloud (API, jobs, observer, deciders, CLI, lab)."""
