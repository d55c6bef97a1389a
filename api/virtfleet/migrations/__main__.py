"""`python -m virtfleet.migrations`: brings the database to this version's tables, and does nothing else."""

from virtfleet.migrations import upgrade

if __name__ == "__main__":
    upgrade()
