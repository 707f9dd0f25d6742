"""Certificates for tests, made by openssl."""

import subprocess
from pathlib import Path
from typing import NamedTuple

_CONFIG = """\
[ca]
default_ca = own
[own]
database = {folder}/{name}.index
serial = {folder}/{name}.serial
new_certs_dir = {folder}
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectAltName = {names}
[req]
distinguished_name = empty
[empty]
"""


class CertificateFiles(NamedTuple):
    """PEM files of a self-signed certificate and its key."""

    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of `rolecall serve`."""
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)


def make_certificate(
    folder: Path,
    name: str = "tls",
    *,
    names: str = "IP:127.0.0.1",
    begin: str = "20200101000000Z",
    end: str = "20990101000000Z",
    curve: str = "P-256",
) -> CertificateFiles:
    """Make `name.crt` and `name.key` in the folder, for these names and this time."""
    config, request = folder / f"{name}.cnf", folder / f"{name}.csr"
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    config.write_text(_CONFIG.format(folder=folder, name=name, names=names))
    (folder / f"{name}.index").write_text("")
    (folder / f"{name}.serial").write_text("01")
    ask = f"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:{curve} -nodes -subj /CN=rolecall -config {config}"
    sign = f"openssl ca -batch -selfsign -notext -config {config} -startdate {begin} -enddate {end}"
    for command in (f"{ask} -keyout {key} -out {request}", f"{sign} -keyfile {key} -in {request} -out {cert}"):
        subprocess.run(command.split(), check=True, capture_output=True)
    return CertificateFiles(cert, key)
