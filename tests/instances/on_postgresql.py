"""Runs tests on the PostgreSQL of an instance, whose socket SSH brings here.

`python -m tests.instances.on_postgresql ADDRESS PORT KEY TEST...`
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.checks.runner import ROOT

SOCKET = ".s.PGSQL.5432"
CONNECT_SECONDS = 60.0


def main() -> int:
    """Run the tests; return pytest's exit status."""
    address, port, key, *tests = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        forward = ("-N", "-L", f"{folder}/{SOCKET}:/run/postgresql/{SOCKET}")
        quiet = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known")
        tunnel = subprocess.Popen(["ssh", *quiet, "-p", port, "-i", key, *forward, f"root@{address}"])
        try:
            deadline = time.monotonic() + CONNECT_SECONDS
            while not Path(folder, SOCKET).exists():
                if tunnel.poll() is not None or time.monotonic() > deadline:
                    print(f"no way to the PostgreSQL of {address}", file=sys.stderr)
                    return 1
                time.sleep(0.1)
            server = f"postgresql+psycopg://root@/postgres?host={folder}"
            pytest = (sys.executable, "-m", "pytest", "-p", "tests.checks.skips", "-q", "-n0", *tests)
            environment = os.environ | {"VIRTFLEET_TEST_POSTGRESQL": server}
            return subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode
        finally:
            tunnel.terminate()
            tunnel.wait()


if __name__ == "__main__":
    sys.exit(main())
