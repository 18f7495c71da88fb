"""TLS credentials and the dashboard's secret, made once per run on rank 0 and kept in memory; and which places to trust.

The key reaches the other processes only through their connection to rank 0, and through pipes; the coordinator's record, which
a killed run may leave behind as a file, has the certificate alone. Even OpenSSL, which reads keys from files alone, gets them
from memory where the system allows that (Linux: ``memfd_create``).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

__all__ = ["Credentials", "dashboard_token", "pinned", "swappable_by_group", "unsafe"]

# The name that Dask's own temporary certificates carry; nobody checks it.
_NAME = "dask-internal"
_VALID = datetime.timedelta(days=365)


@dataclass(frozen=True, repr=False)
class Credentials:
    """A certificate that is its own authority, and its key; whoever has them is of the run.

    Parameters
    ----------
    certificate, key : str
        In PEM.
    """

    certificate: str
    key: str

    @classmethod
    def generate(cls) -> Credentials:
        """Make new credentials.

        An elliptic-curve key (P-256): a tenth of a millisecond to make, against 70 ms and more for the RSA key of
        `distributed.Security.temporary`, and cheaper in every handshake.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # The clocks of the nodes may differ.
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + _VALID)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )

    def context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """Make the context of one side of a connection; both sides must have these very credentials."""
        context = _context(purpose, self.certificate)
        self._show(context)
        return context

    def coordinator_context(self) -> ssl.SSLContext:
        """Make the context of rank 0's coordinator: it proves who it is to ranks that do not have the key yet."""
        import ssl

        context = _context(ssl.Purpose.CLIENT_AUTH, self.certificate)
        self._show(context)
        context.verify_mode = ssl.CERT_NONE
        return context

    def _show(self, context: ssl.SSLContext) -> None:
        with _files(self.certificate, self.key) as (certificate, key):
            context.load_cert_chain(certificate, key)

    def __repr__(self) -> str:
        return "Credentials(in memory)"


def pinned(certificate: str) -> ssl.SSLContext:
    """Make the context of a connection to whoever has the key of this certificate, and to nobody else."""
    import ssl

    return _context(ssl.Purpose.SERVER_AUTH, certificate)


def _context(purpose: ssl.Purpose, certificate: str) -> ssl.SSLContext:
    # Not at the top: it takes 10 ms, also of ranks that never need it.
    import ssl

    context = ssl.create_default_context(purpose, cadata=certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The certificate is the run's own and names no host; `VERIFY_X509_STRICT` wants a real authority's.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    if purpose is ssl.Purpose.CLIENT_AUTH:
        # Dask comes back to no session; making the tickets takes two fifths of the server's part of a handshake.
        context.num_tickets = 0
    return context


@contextlib.contextmanager
def _files(*contents: str) -> Iterator[list[str]]:
    """Give names under which these contents can be read, for as long as the block runs."""
    if hasattr(os, "memfd_create"):
        with contextlib.ExitStack() as stack:
            names = []
            for content in contents:
                descriptor = os.memfd_create("batchlet", os.MFD_CLOEXEC)
                stack.callback(os.close, descriptor)
                os.write(descriptor, content.encode())
                names.append(f"/proc/self/fd/{descriptor}")
            yield names
        return
    with tempfile.TemporaryDirectory(prefix="batchlet-") as directory:
        names = [os.path.join(directory, str(number)) for number in range(len(contents))]  # noqa: PTH118
        for name, content in zip(names, contents, strict=True):
            with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
                file.write(content)
        yield names


def unsafe(directory: str) -> str | None:
    """Say why something of ours in a directory would not be safe: another user could put their own in its place.

    That is who owns the directory or the symbolic link to it, and everybody where it or one above it is writable for all
    without the sticky bit. Root is trusted, and so is who owns those above: that may be the head of the user's project.
    """
    trusted = {0, os.geteuid()}
    with contextlib.suppress(OSError):
        if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
            # In a container's user namespace root of the host looks like nobody.
            trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    named = Path(directory).absolute()
    real = named.resolve()
    for path in (named, real):
        owner = path.lstat().st_uid
        if owner not in trusted:
            return f"{path} belongs to user {owner}"
    for path in (real, *real.parents):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"{path} is writable for everybody, without the sticky bit (mode {mode:04o})"
    return None


def swappable_by_group(directory: str) -> str | None:
    """Say why a member of a group could put their own in the place of something of ours in a directory.

    That is where it or one above it is writable for a group, without the sticky bit, as the directories of a project often are
    (mode 2770). A group that is its user's own, as many systems make one for each user, has nobody else in it.
    """
    real = Path(directory).resolve()
    for path in (real, *real.parents):
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & stat.S_IWGRP and not mode & stat.S_ISVTX and not _is_private(status.st_gid):
            return f"{path} is writable for its group ({_group_name(status.st_gid)}), without the sticky bit (mode {mode:04o})"
    return None


def _is_private(gid: int) -> bool:
    """Whether a group is that of this user alone, or of root, who is trusted."""
    import grp
    import pwd

    for uid in {os.geteuid(), 0}:
        with contextlib.suppress(KeyError):
            user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
            if gid == user.pw_gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}:
                return True
    return False


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def dashboard_token(secret: str) -> str:
    """Derive the secret part of the dashboard's address from the run's secret; 128 bits, hexadecimal."""
    return hmac.new(bytes.fromhex(secret), b"dashboard", hashlib.sha256).hexdigest()[:32]
