"""The authority of a site: what it signs, when it signs again, and what it never does."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.roles.programs import load

CLIENT = {"common_name": "virtfleet-controller", "names": [], "days": 365, "renew_days": 30}
HOST = {"common_name": "host-a", "names": ["host-a", "192.0.2.1"], "days": 365, "renew_days": 30, "certificate": ""}


certificates = load("hypervisor/library/hypervisor_certificate.py")


def request(key: ec.EllipticCurvePrivateKey) -> str:
    unsigned = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return unsigned.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.ensure_client(tmp_path / "pki", CLIENT, check=False)
    return tmp_path / "pki"


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def signed(folder: Path, key: ec.EllipticCurvePrivateKey, **other: Any) -> tuple[bool, str]:
    authority = certificates.Authority.read(folder)
    changed, text = certificates.sign_host(authority, HOST | {"request": request(key)} | other)
    return bool(changed), str(text)


def test_check_mode_makes_nothing(tmp_path: Path) -> None:
    assert certificates.ensure_client(tmp_path / "pki", CLIENT, check=True)
    assert not (tmp_path / "pki").exists()


def test_a_second_run_changes_nothing(folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
    assert not certificates.ensure_client(folder, CLIENT, check=False)
    changed, text = signed(folder, key)
    assert changed
    assert signed(folder, key, certificate=text) == (False, text)


def test_keys_are_for_their_owner_alone(folder: Path) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes["ca-key.pem"] == modes["clientkey.pem"] == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_openssl_accepts_what_was_signed(folder: Path, key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    (tmp_path / "host.pem").write_text(signed(folder, key)[1])
    for file, purpose in ((tmp_path / "host.pem", "sslserver"), (folder / "clientcert.pem", "sslclient")):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(folder / "cacert.pem")]
        done = subprocess.run([*verify, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_certificate_of_the_controller_is_for_no_server(folder: Path) -> None:
    verify = ["openssl", "verify", "-purpose", "sslserver", "-CAfile", str(folder / "cacert.pem")]
    done = subprocess.run([*verify, str(folder / "clientcert.pem")], capture_output=True, text=True, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(
    "other",
    [{"names": ["host-a", "192.0.2.2"]}, {"common_name": "host-b"}, {"renew_days": 366}],
    ids=["another address", "another name", "ends soon"],
)
def test_a_certificate_that_fits_no_more_is_made_again(
    folder: Path, key: ec.EllipticCurvePrivateKey, other: dict[str, Any]
) -> None:
    _, text = signed(folder, key)
    assert signed(folder, key, certificate=text, **other)[0]


def test_a_certificate_for_another_key_or_of_another_authority_is_made_again(
    folder: Path, key: ec.EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    _, text = signed(folder, key)
    assert signed(folder, ec.generate_private_key(ec.SECP256R1()), certificate=text)[0]
    certificates.ensure_client(tmp_path / "other", CLIENT, check=False)
    assert signed(tmp_path / "other", key, certificate=text)[0]
    assert signed(folder, key, certificate="no certificate at all")[0]


def test_half_an_authority_is_an_error_and_never_made_anew(folder: Path) -> None:
    (folder / "ca-key.pem").unlink()
    before = (folder / "cacert.pem").read_bytes()
    with pytest.raises(OSError, match=r"ca-key\.pem"):
        certificates.ensure_client(folder, CLIENT, check=False)
    assert (folder / "cacert.pem").read_bytes() == before
