"""The same fleet on the lab as in tests/lab."""

from tests.lab.conftest import fleet, whole_fleet

__all__ = ["fleet", "whole_fleet"]
