"""`python -m virtfleet.lab`: the commands of `virtfleet lab`."""

from virtfleet.cli.lab import app

app(prog_name="virtfleet lab")
