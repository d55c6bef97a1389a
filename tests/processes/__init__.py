"""Tests of the control plane with its real processes: API, workers, observer, controller, Ansible."""
