"""What the command line says at the end of a job."""

from typing import Any, cast

import pytest
from virtfleet.cli import progress
from virtfleet.cli.client import Api, CliError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"message": "No. Wait.", "hint": "Wait."}, "The job job_1 has failed: No. Wait."),
        ({"message": "No.", "hint": "Wait."}, "The job job_1 has failed: No. Wait."),
        ({"message": "No.", "hint": ""}, "The job job_1 has failed: No."),
        ({"message": "", "hint": "Wait."}, "The job job_1 has failed: Wait."),
        (None, "The job job_1 has failed."),
    ],
)
def test_a_failed_job_is_told_with_its_hint_once(error: dict[str, Any] | None, said: str) -> None:
    job = {"id": "job_1", "state": "failed", "error": error}
    with pytest.raises(CliError) as told:
        progress.finish(cast("Api", None), {"job": job}, wait=True)
    assert str(told.value) == said
