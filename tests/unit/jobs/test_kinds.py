"""What the kinds of jobs say of themselves, beside their playbooks."""

import yaml
from virtfleet.jobs import kinds


def test_discovering_a_host_outlasts_what_its_module_may_take() -> None:
    kind = kinds.KINDS["host.discover"]
    options = yaml.safe_load(kind.path.with_suffix(".meta.yml").read_text())["argument_specs"]["main"]["options"]
    assert kind.timeout is not None
    assert kind.timeout > options["virtfleet_timeout"]["default"]
