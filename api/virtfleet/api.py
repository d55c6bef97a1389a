"""`python -m virtfleet.api`: the API behind gunicorn, one process with threads."""

import logging
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from virtfleet import database, migrations, settings
from virtfleet.app import create_app
from virtfleet.services import auth


class Server(BaseApplication):
    """Gunicorn with what our settings say, and nothing from the command line."""

    def load_config(self) -> None:
        """Hand our settings over."""
        chosen = settings.load()
        for name, value in {
            "bind": chosen.listen,
            "worker_class": "gthread",
            "workers": 1,
            "threads": chosen.api_threads,
            # A worker that computes for so long has lost its way; streams are not counted.
            "timeout": 120,
            "graceful_timeout": 5,
            "keepalive": 15,
            "limit_request_line": 8190,
            "proc_name": "virtfleet-api",
            "accesslog": None,
            "errorlog": "-",
            "loglevel": "warning",
            "control_socket_disable": True,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the application; runs in the process that serves."""
        return create_app()


def main() -> None:
    """Run the API in the foreground."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    migrations.upgrade()
    auth.first_start()
    database.dispose()  # gunicorn forks, and processes must not share a connection
    Server().run()


if __name__ == "__main__":
    main()
