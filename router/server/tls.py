"""The certificate that clients are shown. A new one serves new connections; those that are open keep theirs."""

from __future__ import annotations

import ssl

# A chain of a dozen certificates takes a tenth.
PEM_BYTES_MAX = 256 * 1024


class ListenerTls:
    """`context` is what the listener is opened with. Each handshake is handed the context that is current then.

    A context is replaced whole: loading a new pair into a live one would leave it half changed where the pair is bad.
    """

    def __init__(self, first: ssl.SSLContext) -> None:
        self.context = first
        self._current = first
        first.sni_callback = self._hand_over  # called for every handshake, also without a name (OpenSSL)

    def replace(self, context: ssl.SSLContext) -> None:
        self._current = context

    def _hand_over(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._current


def serving(cert_file: str, key_file: str) -> tuple[bytes, ssl.SSLContext]:
    """The certificate's text, and a context that shows it. Raises ValueError in words for the operator."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL does not say which of the two files it could not read.
    certificate, _ = _content(cert_file), _content(key_file)
    try:
        context.load_cert_chain(cert_file, key_file, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"the key in {key_file} does not belong to the certificate in {cert_file}") from None
        raise ValueError(f"{cert_file} and {key_file} are no certificate and key in PEM: {error.reason}") from None
    except OSError as error:
        raise ValueError(f"{cert_file}, {key_file}: {error.strerror or error}") from None
    return certificate, context


def _content(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read(PEM_BYTES_MAX)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None


def _refuse_password() -> bytes:
    """Without it OpenSSL would ask on the terminal."""
    raise ValueError("the key is protected by a password, which nobody is there to type")
