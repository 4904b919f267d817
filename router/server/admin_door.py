"""Who may pass to the admin API: a token where one is set, and no browser that another site leads here."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping
from pathlib import Path

TOKEN_BYTES_MAX = 4096  # a file that is larger is another file
TOKEN_CHARS_MIN = 16  # `openssl rand -hex 16` gives 32; less can be guessed


class AdminRefusal(Exception):
    """A request that is not obeyed; the text says what to do instead."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class TokenUnreadable(Exception):
    """Nobody passes while the token is not known."""


class TokenFile:
    """The token in a file, read again whenever the file is another one: mounted secrets are swapped whole."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._token = b""

    def __repr__(self) -> str:
        return f"<TokenFile {self._path}>"

    def token(self) -> bytes:
        """Refuses with TokenUnreadable."""
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if seen != self._seen:
                    self._token = self._checked(file.read(TOKEN_BYTES_MAX + 1))
                    self._seen = seen
        except OSError as error:
            self._seen = None
            raise TokenUnreadable(f"admin.token_file {self._path}: {error.strerror or error}") from None
        return self._token

    def _checked(self, raw: bytes) -> bytes:
        token = raw.strip()
        is_text = token.isascii() and token.decode("ascii").isprintable() and b" " not in token
        if not is_text or not TOKEN_CHARS_MIN <= len(token) <= TOKEN_BYTES_MAX:
            self._seen = None
            raise TokenUnreadable(
                f"admin.token_file {self._path} should hold one token of {TOKEN_CHARS_MIN} or more printable "
                "characters, such as `openssl rand -hex 32` prints"
            )
        return token


class Door:
    """`is_own_host` knows the names by which this machine alone reaches the API; asked where no token is set."""

    def __init__(self, token_file: TokenFile | None, is_own_host: Callable[[str], bool]) -> None:
        self._token_file = token_file
        self._is_own_host = is_own_host

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Refuses with AdminRefusal. Names of headers are looked up without regard to case."""
        self._check_browser(headers)
        if self._token_file is not None:
            _check_token(headers.get("Authorization", ""), self._token_file)
        elif not self._is_own_host(_host_of(headers.get("Host", ""))):
            # A page whose own name was made to lead here (DNS rebinding) sends that name.
            raise AdminRefusal(403, "ask by a name of this machine's loopback, such as http://127.0.0.1:9465")
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if method == "POST" and content_type != "application/json":
            # What a form or a plain fetch of a foreign page can send is one of three other types.
            raise AdminRefusal(415, "send Content-Type: application/json, which no web page can send unasked")

    def _check_browser(self, headers: Mapping[str, str]) -> None:
        is_foreign = headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if is_foreign or "Origin" in headers:
            raise AdminRefusal(403, "no web page may ask this API: use ollama-router or curl")


def _check_token(authorization: str, token_file: TokenFile) -> None:
    try:
        token = token_file.token()
    except TokenUnreadable as error:
        raise AdminRefusal(503, f"nobody passes until the token can be read: {error}") from None
    scheme, _, given = authorization.partition(" ")
    is_right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
    if scheme.lower() != "bearer" or not is_right:
        raise AdminRefusal(
            401,
            "send the token of admin.token_file: --token-file FILE, or Authorization: Bearer TOKEN",
            WWW_Authenticate='Bearer realm="ollama-router admin"',
        )


def _host_of(value: str) -> str:
    """Of a Host header, without port and brackets."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]
