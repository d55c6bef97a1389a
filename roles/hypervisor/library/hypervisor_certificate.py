#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module hypervisor_certificate: the small certificate authority of a site. Runs on the controller."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DOCUMENTATION = r"""
module: hypervisor_certificate
short_description: The certificate authority of a site, its client and its hosts
description:
  - Keeps an authority in a folder of the controller, and signs with it. Keys of hosts never come here, only requests.
  - A certificate is made again when another authority signed it, it is for another key or other names, or ends soon.
options:
  folder:
    description: Where the authority (C(ca-key.pem), C(cacert.pem)) and its client's key and certificate lie.
    type: path
    required: true
  kind:
    description: V(client) makes authority and client in O(folder), V(host) signs O(request).
    type: str
    choices: [client, host]
    required: true
  common_name:
    description: Who the certificate is for. Libvirt lets clients in by it.
    type: str
    required: true
  names:
    description: DNS names and addresses by which the host is reached.
    type: list
    elements: str
    default: []
  request:
    description: The certificate request of a host, PEM.
    type: str
  certificate:
    description: The certificate that the host has now, PEM, or nothing.
    type: str
    default: ""
  days:
    description: How long a new certificate of a client or host is valid.
    type: int
    default: 365
  renew_days:
    description: A certificate that ends within so many days is made again.
    type: int
    default: 30
author:
  - virtfleet contributors (@virtfleet)
"""

SPEC: dict[str, dict[str, Any]] = {
    "folder": {"type": "path", "required": True},
    "kind": {"type": "str", "choices": ["client", "host"], "required": True},
    "common_name": {"type": "str", "required": True},
    "names": {"type": "list", "elements": "str", "default": []},
    "request": {"type": "str"},
    "certificate": {"type": "str", "default": ""},
    "days": {"type": "int", "default": 365},
    "renew_days": {"type": "int", "default": 30},
}
AUTHORITY_NAME = "virtfleet hosts"
AUTHORITY_DAYS = 3650
BACKDATED = datetime.timedelta(hours=1)  # clocks differ

Key = ec.EllipticCurvePrivateKey


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(names: list[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def _usage(*, authority: bool) -> x509.KeyUsage:
    # Libvirt 9 and QEMU 7 refuse a certificate without key encipherment, though no elliptic curve needs it.
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once; it never exists with more rights than `mode`."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.rename(path)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_key(path: Path) -> Key:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no elliptic curve key")
    return key


def _public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


class Authority:
    """The site's authority: its key and its certificate."""

    def __init__(self, key: Key, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate

    @classmethod
    def read(cls, folder: Path) -> Authority | None:
        """Return the authority of the folder, None when it has none. Half of one is an error, never made anew."""
        key, certificate = folder / "ca-key.pem", folder / "cacert.pem"
        if not certificate.exists():
            return None
        return cls(_read_key(key), x509.load_pem_x509_certificate(certificate.read_bytes()))

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Make the authority and write it; the certificate last, since it says that all is there."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _unsigned(AUTHORITY_NAME, key.public_key(), _now() + datetime.timedelta(days=AUTHORITY_DAYS))
            .issuer_name(_name(AUTHORITY_NAME))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / "ca-key.pem", _key_pem(key), 0o600)
        _write(folder / "cacert.pem", _pem(certificate).encode(), 0o644)
        return cls(key, certificate)

    def ends_within(self, days: int) -> bool:
        """Say whether the authority itself ends within so many days."""
        return self.certificate.not_valid_after_utc <= _now() + datetime.timedelta(days=days)

    def sign(self, public_key: Any, params: dict[str, Any], uses: list[x509.ObjectIdentifier]) -> str:
        """Return a certificate for the key and the names of `params`, PEM."""
        end = min(_now() + datetime.timedelta(days=params["days"]), self.certificate.not_valid_after_utc)
        unsigned = (
            _unsigned(params["common_name"], public_key, end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if params["names"]:
            unsigned = unsigned.add_extension(_alternative(params["names"]), critical=False)
        return _pem(unsigned.sign(self.key, hashes.SHA256()))

    def is_good(self, text: str, public_key: Any, params: dict[str, Any]) -> bool:
        """Say whether the certificate is this authority's, for this key and these names, and does not end soon."""
        try:
            certificate = x509.load_pem_x509_certificate(text.encode())
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        try:
            there = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            there = set()
        return (
            _public(certificate.public_key()) == _public(public_key)
            and certificate.subject == _name(params["common_name"])
            and there == set(_alternative(params["names"]))
            and certificate.not_valid_after_utc > _now() + datetime.timedelta(days=params["renew_days"])
        )


def _unsigned(common_name: str, public_key: Any, end: datetime.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - BACKDATED)
        .not_valid_after(end)
    )


def ensure_client(folder: Path, params: dict[str, Any], *, check: bool) -> bool:
    """Make authority and client in the folder where they are missing or end soon; say whether that changed anything."""
    authority = Authority.read(folder)
    key_file, certificate_file = folder / "clientkey.pem", folder / "clientcert.pem"
    if authority and key_file.exists() and certificate_file.exists():
        public_key = _read_key(key_file).public_key()
        if authority.is_good(certificate_file.read_text(), public_key, params):
            return False
    if not check:
        authority = authority or Authority.make(folder)
        key = _read_key(key_file) if key_file.exists() else ec.generate_private_key(ec.SECP256R1())
        _write(key_file, _key_pem(key), 0o600)
        signed = authority.sign(key.public_key(), params, [ExtendedKeyUsageOID.CLIENT_AUTH])
        _write(certificate_file, signed.encode(), 0o644)
    return True


def sign_host(authority: Authority, params: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the host needs a new certificate, and the certificate it shall have."""
    request = x509.load_pem_x509_csr(params["request"].encode())
    if not request.is_signature_valid:
        raise ValueError("the request is not signed by the key that it names")
    key = request.public_key()
    if authority.is_good(params["certificate"], key, params):
        return False, params["certificate"]
    # A host is a server, and the client of its peers when a machine migrates.
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return True, authority.sign(key, params, uses)


def main() -> None:
    """Read the arguments, do it, tell the result."""
    module = AnsibleModule(
        argument_spec=SPEC, supports_check_mode=True, required_if=[("kind", "host", ["request", "names"])]
    )
    params = module.params
    folder = Path(params["folder"])
    try:
        if params["kind"] == "client":
            changed = ensure_client(folder, params, check=module.check_mode)
        authority = Authority.read(folder)
        if authority is not None and authority.ends_within(params["renew_days"]):
            raise ValueError(f"the authority itself ends on {authority.certificate.not_valid_after_utc:%Y-%m-%d}")
        if params["kind"] == "client":
            module.exit_json(changed=changed, authority=_pem(authority.certificate) if authority else "")
        if authority is None:
            raise ValueError("there is no authority; kind=client makes it")
        changed, certificate = sign_host(authority, params)
        module.exit_json(changed=changed, certificate=certificate)
    except (OSError, ValueError, TypeError) as error:
        module.fail_json(
            msg=f"Failed to keep the certificates in {folder}: {error}. "
            "To begin anew, remove that folder; every host then gets a new certificate at the next run."
        )


if __name__ == "__main__":
    main()
