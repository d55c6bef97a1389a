"""Every test file lies in a folder that some check runs."""

import sys

from tests.checks.runner import ROOT


def main(suites: list[str]) -> int:
    """Name the test files that no suite would run; return the exit status."""
    tests = ROOT / "tests"
    lost = [path for path in tests.rglob("test_*.py") if path.relative_to(tests).parts[0] not in suites]
    for path in lost:
        print(f"{path.relative_to(ROOT)}: no check runs this file. Put it into one of tests/{{{','.join(suites)}}}.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
