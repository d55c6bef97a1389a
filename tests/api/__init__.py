"""Tests of the control plane with its real parts: database, queue, workers, Ansible."""
