"""Notices that the configuration, or a file that it names, has other content, and has it read again.

What a reload means is none of its business. Files are looked at in a thread: a mount that hangs delays no call.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

log = logging.getLogger(__name__)

POLL_S = 2.0  # a ConfigMap takes the kubelet up to a minute: what we add is not noticed
SETTLE_S = 0.2  # a file that is being written is other content, too: only what stays so is read
GONE_LOOKS = 3  # editors and mounts replace files by way of none at all
# Within this a second write may leave stat as it was: until a file is older, its content is read at each look.
FRESH_S = 3.0
BYTES_MAX = 8 * 1024 * 1024  # twice the largest configuration; the rest of a larger file changes unseen

Digest = str  # '' for a file that cannot be read
Stamp = tuple[int, ...]  # what stat says of the file behind all links: a swapped `..data` leads to another one


class Files:
    """Content by path, as digests. Reads again only what stat says is another file, or a changed one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamp, Digest]] = {}

    def look(self, paths: Iterable[str]) -> dict[str, Digest]:
        return {path: self._digest(path) for path in paths}

    def _digest(self, path: str) -> Digest:
        try:
            found = os.stat(path)
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read(BYTES_MAX)).hexdigest()
        except OSError:
            self._known.pop(path, None)
            return ""
        if time.time() - max(found.st_mtime, found.st_ctime) > FRESH_S:
            self._known[path] = (stamp, digest)
        return digest


class ConfigWatch:
    """Runs for ever; one reload at a time. What is asked for during a reload is another one after it."""

    def __init__(
        self,
        files: Callable[[], Iterable[str]],
        reload: Callable[[], Awaitable[None]],
        asked: asyncio.Event,
        *,
        seen: Mapping[str, Digest],
        poll_s: float = POLL_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        """`asked` is set by whoever wants a reload at once. `seen` are the files as they were read at the start."""
        self._files = files
        self._reload = reload
        self._asked = asked
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._looking = Files()
        self._seen = dict(seen)  # when they were read last, well or not
        self._gone: dict[str, int] = {}  # looks in a row that found nothing

    def __repr__(self) -> str:
        return f"<ConfigWatch {len(self._seen)} files>"

    def note(self) -> None:
        """Called before named files are read for the first time: what changes from here on is seen as a change."""
        unseen = [path for path in self._files() if path not in self._seen]
        self._seen.update(self._looking.look(unseen))

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._asked.wait()
            try:
                await self._pass()
            except Exception:
                # A supervisor: a defect met in reading must not end a router that serves well as it is.
                log.exception("reloading the configuration failed")

    async def _pass(self) -> None:
        is_asked = self._asked.is_set()
        self._asked.clear()
        found = await self._look()
        if not is_asked:
            found = self._forgiving(found)
            if all(self._seen.get(path) == digest for path, digest in found.items()):
                return
            await asyncio.sleep(self._settle_s)
            if self._forgiving(await self._look()) != found:
                return  # still being written: the next look sees it again
        self._seen = found  # before it is read: what changes meanwhile is seen as a change
        await self._reload()

    async def _look(self) -> dict[str, Digest]:
        return await asyncio.to_thread(self._looking.look, tuple(self._files()))

    def _forgiving(self, found: dict[str, Digest]) -> dict[str, Digest]:
        """A file that has just vanished counts as it was, for a few looks."""
        self._gone = {path: self._gone.get(path, 0) + 1 for path, digest in found.items() if not digest}
        return {
            path: self._seen.get(path, digest) if 0 < self._gone.get(path, 0) <= GONE_LOOKS else digest
            for path, digest in found.items()
        }
