"""Certificates made on the spot: one that nobody has signed, and those of an internal CA."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="makes its certificate with openssl"
)
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return what a server needs to speak TLS with such a certificate, which is left in the folder."""
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def of_internal_ca(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what a server at 127.0.0.1 needs, and the file of the CA that has signed its certificate."""
    ca, ca_key = folder / "ca.pem", folder / "ca_key.pem"
    own, own_key, request = folder / "own.pem", folder / "own_key.pem", folder / "own.csr"
    extensions = folder / "own.ext"
    signing = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2")
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:service.internal\n")
    for command in (
        ["req", "-x509", *_KEY, "-subj", "/CN=Internal CA", "-keyout", ca_key, "-out", ca],
        ["req", *_KEY[:-2], "-subj", "/CN=service.internal", "-keyout", own_key, "-out", request],
        ["x509", "-req", "-in", request, *signing, "-extfile", extensions, "-out", own],
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own, own_key)
    return context, ca
