"""The admin API joined to what it asks and tells."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from router.reload import Parts, Reloader
from router.server.admin import Admin, AdminSources
from router.server.admin_door import Door, TokenFile, TokenUnreadable
from router.server.listen import Spot, listen_pages
from router.settings import ConfigError, Settings, host_port, is_loopback, redacted


async def listen_admin(
    spot: Spot, reloader: Reloader, parts: Parts, now_s: Callable[[], float]
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """The port, and what closes it. Refuses with ConfigError where the token cannot be read."""
    keeper, placer, store = parts.keeper, parts.placer, parts.store
    sources = AdminSources(
        snapshot=lambda: keeper.snapshot,
        occupancy=lambda: store.occupancy,
        lines=store.lines,
        queue_limit=lambda key: store.limits.of(key),  # noqa: PLW0108 - the limits may be set anew
        circuits=keeper.circuits.not_closed,
        loading=lambda: placer.loading,
        failures=lambda: placer.failures,
        drained=keeper.drained,
        drain=keeper.drain,
        resume=keeper.resume,
        rules=lambda: parts.pipeline.rules,
        settings=lambda: redacted(reloader.settings),
        now_s=now_s,
        mode=lambda: placer.mode,
        experience=lambda: placer.experience,
        leaving=lambda: placer.leaving,
        since_s=lambda: placer.since_s,
        declarations=lambda: placer.declarations,
        troubles=lambda: parts.watch.troubles,
    )
    host, _ = host_port(reloader.settings.admin.listen)
    door = Door(_token_file(reloader.settings), lambda name: is_loopback(name) or name == host)
    admin = Admin(sources, door, partial(parts.metrics.page_answered, "admin"))
    return await listen_pages(admin.application(), spot)


def _token_file(settings: Settings) -> TokenFile | None:
    if settings.admin.token_file is None:
        return None
    token_file = TokenFile(settings.admin.token_file)
    try:
        token_file.token()
    except TokenUnreadable as error:
        raise ConfigError([str(error)]) from None
    return token_file
