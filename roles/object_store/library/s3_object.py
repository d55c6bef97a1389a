#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module s3_object: one object of an S3 service, without any library."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import os
import time
import urllib.parse
from pathlib import Path
from typing import IO, Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: s3_object
short_description: One object of an S3 service, without any library
description:
  - Writes, reads or deletes an object, as a proof that this can be done.
  - M(amazon.aws.s3_object) does more, and needs boto3 on the host.
  - The bucket is made when it is missing.
  - Requests are signed as AWS has it in its version 4, so the secret does not leave the host.
options:
  url:
    description: The service, such as C(http://192.0.2.1:8080).
    type: str
    required: true
  access_key:
    description: Who asks.
    type: str
    required: true
  secret_key:
    description: The secret.
    type: str
    required: true
  bucket:
    description: The bucket.
    type: str
    required: true
  name:
    description: The object. Without it the bucket is meant, which V(absent) deletes.
    type: str
  state:
    description: V(present) writes the file C(path), V(read) reads the object into it, V(absent) deletes the object.
    type: str
    choices: [present, read, absent]
    required: true
  path:
    description: The file. Without it V(read) counts and forgets.
    type: path
  timeout_seconds:
    description: How long the service may say nothing, and how long it is asked again while it is not able to answer.
    type: int
    default: 60
author:
  - virtfleet contributors (@virtfleet)
"""

RETURN = r"""
bytes:
  description: How many were written or read.
  returned: always
  type: int
sha256:
  description: The checksum of what was written or read.
  returned: always
  type: str
"""

REGION = "us-east-1"
CHUNK_BYTES = 1 << 20
UNSIGNED = "UNSIGNED-PAYLOAD"
POLL_SECONDS = 1.0
ALREADY_THERE = 409  # somebody else's bucket answers it too, and then refuses the object


class Refused(Exception):
    """The service did not do what it was asked to; the message says what it answered."""


class Unable(Exception):
    """The service cannot answer now, and may soon."""


class Sum:
    """Counts and sums up what flows through."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def add(self, chunk: bytes) -> bytes:
        """Take a chunk, and return it."""
        self.bytes += len(chunk)
        self._hash.update(chunk)
        return chunk

    def sha256(self) -> str:
        """Return the checksum so far."""
        return self._hash.hexdigest()


class Service:
    """An S3 service; each request has a connection of its own."""

    def __init__(self, url: str, access_key: str, secret_key: str, timeout_seconds: float) -> None:
        self._at = urllib.parse.urlsplit(url)
        self._access_key = access_key
        self._secret_key = secret_key
        self._timeout = timeout_seconds

    def ask(
        self, method: str, path: str, body: IO[bytes] | None = None, into: IO[bytes] | None = None, fine: int = 0
    ) -> Sum:
        """Send a request and return what flowed; `fine` is a status that is no error.

        Raises Refused for good, Unable for now.
        """
        kind = http.client.HTTPSConnection if self._at.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._at.hostname or "", self._at.port, timeout=self._timeout)
        flow = Sum()
        try:
            size = os.fstat(body.fileno()).st_size if body else 0
            headers = {**self._signed(method, path), "Content-Length": str(size)}
            chunks = iter(lambda: flow.add(body.read(CHUNK_BYTES)), b"") if body else None
            connection.request(method, path, body=chunks, headers=headers)
            answer = connection.getresponse()
            if answer.status >= 500:
                raise Unable(f"{method} {path}: {answer.status} {answer.reason}")
            if answer.status >= 300 and answer.status != fine:
                raise Refused(f"{method} {path}: {answer.status} {answer.read(500).decode(errors='replace')}")
            if method == "GET":
                while chunk := flow.add(answer.read(CHUNK_BYTES)):
                    if into:
                        into.write(chunk)
                if answer.length:
                    raise Unable(f"{method} {path}: it ended {answer.length} bytes early")
        except (OSError, http.client.HTTPException) as error:
            raise Unable(f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        return flow

    def _signed(self, method: str, path: str) -> dict[str, str]:
        """Return the headers that sign a request: AWS Signature Version 4, with the body left out of it."""
        now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - hosts may have Python 3.10
        moment, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        signed = {"host": self._at.netloc, "x-amz-content-sha256": UNSIGNED, "x-amz-date": moment}
        names = ";".join(signed)
        lines = [method, path, "", *(f"{name}:{value}" for name, value in signed.items()), "", names, UNSIGNED]
        scope = f"{day}/{REGION}/s3/aws4_request"
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        key = f"AWS4{self._secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={self._access_key}/{scope}"
        return {
            **signed,
            "Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}",
        }


def act(service: Service, given: dict[str, Any]) -> Sum:
    """Do once what was asked for."""
    bucket = urllib.parse.quote(f"/{given['bucket']}")
    path = f"{bucket}/{urllib.parse.quote(given['name'])}" if given["name"] else bucket
    if given["state"] == "present":
        service.ask("PUT", bucket, fine=ALREADY_THERE)
        with Path(given["path"]).open("rb") as file:
            return service.ask("PUT", path, body=file)
    if given["state"] == "absent":
        return service.ask("DELETE", path)
    if given["path"] is None:
        return service.ask("GET", path)
    with Path(given["path"]).open("wb") as file:
        return service.ask("GET", path, into=file)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "access_key": {"type": "str", "required": True, "no_log": False},
            "secret_key": {"type": "str", "required": True, "no_log": True},
            "bucket": {"type": "str", "required": True},
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "read", "absent"], "required": True},
            "path": {"type": "path"},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        required_if=[("state", "present", ("name", "path"))],
    )
    given = module.params
    service = Service(given["url"], given["access_key"], given["secret_key"], given["timeout_seconds"])
    deadline = time.monotonic() + given["timeout_seconds"]
    while True:
        try:
            flow = act(service, given)
            break
        except Unable as error:
            obstacle = error
            if time.monotonic() > deadline:
                module.fail_json(
                    msg=f"Failed to have the object {given['state']}: {obstacle}. Look at the log of swift-proxy."
                )
            time.sleep(POLL_SECONDS)
        except Refused as error:
            module.fail_json(msg=f"Failed to have the object {given['state']}: {error}")
    module.exit_json(changed=given["state"] != "read", bytes=flow.bytes, sha256=flow.sha256())


if __name__ == "__main__":
    main()
