"""Whose certificates are trusted: one TLS context for the probe, the load test and the look at metrics.

The system's store is used, as curl and OpenSSL use it, because that is where administrators put an internal
CA. Python's own bundle (certifi) stands in only on a machine that has no store at all, such as a bare
container: an internal CA is unknown to it, and it is older than the system's on a machine that is kept up to
date. So two machines whose stores differ may disagree about a server; curl would then disagree as well.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

import certifi

from llmpilot.errors import ConfigError

REPLACING_FILE, REPLACING_DIRECTORIES = "SSL_CERT_FILE", "SSL_CERT_DIR"
"""They stand for the system's own; OpenSSL reads them itself, and ignores what does not exist."""

ADDING = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables of other clients, whose certificates are trusted in addition to the system's."""

CA_FILE = "deployment.ca_file"


def client_context(
    verify: bool = True, ca_file: str | None = None, environment: Mapping[str, str] = os.environ
) -> ssl.SSLContext:
    """Return the context of a client that trusts the system's store, `ca_file`, and what the variables name.

    Without `verify`, any certificate of any name will do.

    Raises:
        ConfigError: a file or directory that is named does not exist, cannot be read, or has no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    # Alike in all versions of Python, and as curl does: since 3.13 the default refuses many an internal CA.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_default_certs()
    file, directories = environment.get(REPLACING_FILE), environment.get(REPLACING_DIRECTORIES)
    if file:
        _trust(context, file, REPLACING_FILE)
    if directories and not any(Path(path).is_dir() for path in directories.split(os.pathsep)):
        raise _refused(REPLACING_DIRECTORIES, "names no directory that exists", directories)
    if not (file or directories or _system_has_any(context)):
        context.load_verify_locations(certifi.where())
    for variable in ADDING:
        if path := environment.get(variable):
            _trust(context, path, variable)
    if ca_file:
        _trust(context, ca_file, CA_FILE)
    return context


def _system_has_any(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"]:
        return True
    directory = ssl.get_default_verify_paths().capath  # its files are read when they are needed
    return directory is not None and any(Path(directory).iterdir())


def _trust(context: ssl.SSLContext, path: str, named: str) -> None:
    """Trust the certificates at `path`, a file or a directory as `openssl rehash` makes it."""
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            context.load_verify_locations(capath=place)
        else:
            context.load_verify_locations(cafile=place)
    except FileNotFoundError:
        raise _refused(named, "names a file that does not exist", path) from None
    except ssl.SSLError:
        raise _refused(named, "names a file that holds no certificate in PEM format", path) from None
    except OSError as error:
        raise _refused(named, f"names a file that cannot be read ({error.strerror})", path) from None


def _refused(named: str, wrong: str, path: str) -> ConfigError:
    what = "leave it out" if named == CA_FILE else f"unset {named}"
    return ConfigError(
        f"{named} {wrong}", given=f"{named}={path}", cure=f"name a file of CA certificates (PEM), or {what}"
    )
