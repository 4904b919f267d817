"""What an operator may say about the admin API."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from router.settings.nodes import Group
from router.settings.values import Address, host_port, is_loopback


class AdminSettings(Group):
    """Where operators ask what the router knows, and tell it to drain nodes."""

    listen: Address = Field(
        default="127.0.0.1:9465",
        description="Where /admin/... is served, for `ollama-router nodes` and its like. Elsewhere than on loopback "
        "only with admin.token_file.",
    )
    token_file: str | None = Field(
        default=None,
        min_length=1,
        description="A file that holds a token; then every request to /admin/... needs it, as `Authorization: Bearer`. "
        "Read again when it changes.",
    )

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token_file is None and not is_loopback(host_port(self.listen)[0]):
            raise ValueError(
                f"listen is {self.listen}, which other machines reach: give admin.token_file as well, or listen on "
                "loopback, such as 127.0.0.1:9465"
            )
        return self
