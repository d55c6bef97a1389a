"""The command `virtfleet`. It must start fast: what a command needs is imported when it runs."""

import typer

from virtfleet.cli import (
    backups,
    checkpoints,
    clones,
    context_commands,
    fleet,
    guests,
    host_networks,
    host_secrets,
    hosts,
    images,
    jobs,
    lab,
    migrations,
    nwfilters,
    plans,
    simulate,
    snapshots,
    vm_changes,
    vm_settings,
    vms,
)

app = typer.Typer(no_args_is_help=True, help="One private cloud out of libvirt hosts.", pretty_exceptions_enable=False)
vms.app.command("resize")(vm_changes.resize)
vms.app.add_typer(vm_changes.disk, name="disk")
vms.app.add_typer(vm_changes.nic, name="nic")
vms.app.command("set")(vm_settings.set_settings)
vms.app.command("rename")(vm_settings.rename)
vms.app.command("clone")(clones.clone)
vms.app.command("migrate")(migrations.migrate)
vms.app.command("preflight")(migrations.preflight)
vms.app.add_typer(snapshots.app, name="snapshot")
vms.app.add_typer(checkpoints.app, name="checkpoint")
vms.app.command("backup")(backups.backup)
vms.app.command("backups")(backups.list_backups)
vms.app.command("restore")(backups.restore)
vms.app.command("delete-backup")(backups.delete_backup)
hosts.app.command("evacuate")(migrations.evacuate)
hosts.app.add_typer(host_networks.app, name="network")
hosts.app.add_typer(nwfilters.app, name="nwfilter")
hosts.app.add_typer(host_secrets.app, name="secret")
app.add_typer(vms.app, name="vm")
vms.app.add_typer(guests.app)
app.add_typer(hosts.app, name="host")
app.add_typer(images.app, name="image")
app.add_typer(images.flavors, name="flavor")
app.add_typer(hosts.networks, name="network")
app.add_typer(hosts.zones, name="zone")
app.add_typer(jobs.app, name="job")
app.add_typer(vms.placement, name="placement")
app.add_typer(plans.app, name="plan")
app.add_typer(simulate.app, name="simulate")
app.command("capacity")(hosts.capacity)
app.add_typer(context_commands.app, name="context")
app.command("serve")(fleet.serve)
app.command("demo")(fleet.demo)
app.command("down")(fleet.down)
app.add_typer(lab.app, name="lab")


@app.command()
def version() -> None:
    """Print the version of virtfleet."""
    from importlib import metadata  # noqa: PLC0415 - only this command needs it

    typer.echo(metadata.version("virtfleet"))


def main() -> None:
    """Run the command line."""
    app(prog_name="virtfleet")
