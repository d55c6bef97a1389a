"""`python -m tests.instances up|down|list`: Debian instances with a systemd of their own, for roles to work on."""

import argparse
import json
import sys

from virtfleet.lab import programs
from virtfleet.lab.errors import LabError

from tests.instances.group import Group, groups


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.instances", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="make a group of instances anew; prints as JSON how to reach each")
    up.add_argument("group", help="what the instances are for, such as hypervisor-default")
    up.add_argument("--machines", action="store_true", help="virtual machines, with a kernel of their own")
    up.add_argument("names", nargs="+", metavar="NAME", help="an instance to make")
    down = verbs.add_parser("down", help="remove a group and all that its instances wrote")
    down.add_argument("group")
    verbs.add_parser("list", help="name the groups of this checkout")
    return parser


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    options = _parser().parse_args()
    try:
        programs.check(f"{options.verb} instances")
        match options.verb:
            case "up":
                print(json.dumps(Group(options.group).up(options.names, options.machines), indent=1))
            case "down":
                print(json.dumps(Group(options.group).down()))
            case "list":
                print(json.dumps(groups()))
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
