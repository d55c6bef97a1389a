"""Tests of the control plane over a real database, within one process."""
