"""Names for the shell's completion, asked of the API; silence when it does not answer at once."""

import os

SECONDS = 1.0


def _names(path: str, incomplete: str, called: str = "name") -> list[str]:
    try:
        import httpx  # noqa: PLC0415 - takes longer to load than all else

        from virtfleet.cli.client import where  # noqa: PLC0415 - the same

        url, token = where()
        headers = {"Authorization": f"Bearer {token}"}
        # Without TLS there is nothing to verify, and reading all certificates takes time.
        verify = url.startswith("https:")
        path = f"{url}/api/v1{path}?limit=1000"
        answer = httpx.get(path, headers=headers, timeout=SECONDS, trust_env=False, verify=verify)
        return [item[called] for item in answer.json()["items"] if item[called].startswith(incomplete)]
    except Exception:
        if os.environ.get("VIRTFLEET_DEBUG"):
            raise
        return []


def vms(incomplete: str) -> list[str]:
    """Return the machines whose names begin so."""
    return _names("/vms", incomplete)


def hosts(incomplete: str) -> list[str]:
    """Return the hosts whose names begin so."""
    return _names("/hosts", incomplete)


def images(incomplete: str) -> list[str]:
    """Return the images whose names begin so."""
    return _names("/images", incomplete)


def volumes(incomplete: str) -> list[str]:
    """Return the volumes whose names begin so."""
    return _names("/volumes", incomplete)


def flavors(incomplete: str) -> list[str]:
    """Return the flavors whose names begin so."""
    return _names("/flavors", incomplete)


def zones(incomplete: str) -> list[str]:
    """Return the zones whose names begin so."""
    return _names("/zones", incomplete)


def networks(incomplete: str) -> list[str]:
    """Return the networks whose names begin so."""
    return _names("/networks", incomplete)


def jobs(incomplete: str) -> list[str]:
    """Return the jobs whose ids begin so, the newest first."""
    return _names("/jobs", incomplete, "id")
