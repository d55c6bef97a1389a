"""The error of the lab."""


class LabError(Exception):
    """The lab cannot do what was asked. Reads: what was wanted, what stood in the way, what to do next."""

    def __init__(self, wanted: str, obstacle: str, hint: str = "") -> None:
        sentence = f"Failed to {wanted}: {obstacle.strip().rstrip('.')}."
        super().__init__(f"{sentence} {hint}".strip())
        self.wanted = wanted
        self.obstacle = obstacle
        self.hint = hint
