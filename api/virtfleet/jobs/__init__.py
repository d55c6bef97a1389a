"""Jobs: every change is a playbook run with a row, locks, a lease, events and an end that is written once."""
