"""What the kinds of jobs say of themselves, beside their playbooks."""

import pytest
import yaml
from virtfleet.jobs import kinds


def bounds() -> dict[str, tuple[float, float]]:
    """Return the seconds that a job may take and those that its longest module may, of the kinds that name both."""
    found = {}
    for kind in kinds.KINDS.values():
        about = yaml.safe_load(kind.path.with_suffix(".meta.yml").read_text())
        options = about["argument_specs"]["main"].get("options", {})
        if kind.timeout is not None and "virtfleet_timeout" in options:
            found[kind.name] = (kind.timeout, options["virtfleet_timeout"]["default"])
    return found


@pytest.mark.parametrize("name", ["host.discover", "image.import"])
def test_the_kinds_with_slow_modules_bound_them(name: str) -> None:
    assert name in bounds()


def test_a_job_outlasts_what_its_module_may_take() -> None:
    assert [name for name, (job, module) in bounds().items() if job <= module] == []
