"""What is measured."""

from virtfleet.schemas.base import Out


class MetricOut(Out):
    """One value of a metric, in its unit."""

    name: str
    labels: dict[str, str]
    value: float
    unit: str
    meaning: str
