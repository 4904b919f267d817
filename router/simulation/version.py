"""What an Ollama version does differently."""

from __future__ import annotations

import re
from dataclasses import dataclass

Release = tuple[int, int, int]

NEWEST: Release = (99, 0, 0)
# /v1/images/* was removed on 2026-07-28; the first tag after that day is taken to be this one.
IMAGES_REMOVED: Release = (0, 32, 5)

SINCE: dict[str, Release] = {
    "/v1/responses": (0, 13, 3),
    "/v1/messages": (0, 14, 0),
    "/v1/images/generations": (0, 14, 3),
    "/v1/images/edits": (0, 14, 3),
    "/api/status": (0, 16, 2),
    "/v1/audio/transcriptions": (0, 20, 0),
}
UNTIL: dict[str, Release] = {"/v1/images/generations": IMAGES_REMOVED, "/v1/images/edits": IMAGES_REMOVED}


@dataclass(frozen=True, slots=True)
class Version:
    """`text` is what /api/version says; a source build says 0.0.0 and behaves as the newest."""

    text: str
    release: Release

    def has_route(self, path: str) -> bool:
        return SINCE.get(path, (0, 0, 0)) <= self.release < UNTIL.get(path, (100, 0, 0))

    @property
    def has_zstd(self) -> bool:
        return self.release >= (0, 17, 0)

    @property
    def has_llama_server(self) -> bool:
        """cgo engines gone: 501 text of embeddings, capabilities and lengths in tags, ps silent during a load."""
        return self.release >= (0, 30, 0)

    @property
    def has_finish_chunk(self) -> bool:
        """Chat streams: role only in the first event, an own finish event, one `created` (recordings v0.24/)."""
        return self.release >= (0, 32, 6)


def parse_version(text: str) -> Version:
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    release = (int(found[1]), int(found[2]), int(found[3])) if found else NEWEST
    return Version(text, NEWEST if release == (0, 0, 0) else release)
