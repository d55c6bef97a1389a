"""Commands of `virtfleet`."""
