"""Instances for the tests of roles: Debian machines with a systemd of their own, in namespaces of this machine.

`docs/decisions/0003-role-tests.md` says why they are made like this.
"""
