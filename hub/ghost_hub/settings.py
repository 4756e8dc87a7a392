"""What an operator can set about the hub over HTTP: the file of ``ghost serve --config``, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ghost_hub.preview.naming import DOMAIN
from ghost_mcp.backends.registry import default_backend, find_backend
from ghost_mcp.errors import InvalidArgument

__all__ = ["Bounds", "HubSettings"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Bounds(BaseModel):
    """What one caller may take of the hub. Sizes are bytes, times seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caves_per_owner: int = Field(default=20, ge=1)
    calls_per_owner: int = Field(default=32, ge=1, description="At the same time.")
    requests_per_s: float = Field(default=200, gt=0, description="Of one token, in the long run.")
    requests_burst: int = Field(default=2_000, ge=1)
    body_bytes: int = Field(
        default=16 << 20,
        ge=1024,
        description="Of one request; uploads are streamed and have no bound.",
    )
    idle_timeout_s: float | None = Field(
        default=3600, description="Ends default caves; their files are kept."
    )
    sessions: int = Field(
        default=10_000, ge=1, description="Sessions of clients of the older protocol, all together."
    )


class HubSettings(BaseModel):
    """``allowed_hosts`` are further names by which clients may reach the hub: ``ghost.example.org``.

    ``terminal_port`` is a second port, for ``wscat -c ws://127.0.0.1:7681``; ``desktop_port`` a third, for
    ``http://127.0.0.1:6080/vnc.html``. ``preview_domain`` is whose subdomains show what runs in caves, in a scheme and
    at a port if it names them; empty is none. ``tokens_file`` is a file of tokens that several hubs share and none of them writes.
    ``trusted_proxies`` are the addresses and networks whose ``X-Forwarded-Proto`` and ``-For`` are believed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    terminal_port: int | None = Field(default=None, ge=0, le=65535)
    desktop_port: int | None = Field(default=None, ge=0, le=65535)
    backend: str | None = None
    pool: int = Field(default=2, ge=0, le=64, description="Caves that are kept ready.")
    auth: bool = True
    tokens_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    preview_domain: str = Field(default="caves.localhost", pattern=rf"^(?:{DOMAIN.pattern})?$")
    tls_cert: str | None = None
    tls_key: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    bounds: Bounds = Bounds()

    @classmethod
    def load(cls, path: str | None, **given: object) -> Self:
        """From a YAML file and what overrides it; None there means: not given. Raises InvalidArgument."""
        values: dict[str, object] = {}
        if path is not None:
            import yaml

            try:
                values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
            except (OSError, yaml.YAMLError) as exc:
                raise InvalidArgument(f"cannot read {path}: {exc}") from exc
            if not isinstance(values, dict):
                raise InvalidArgument(
                    f"{path} does not hold settings", hint="See configs/ghost.example.yaml."
                )
        values |= {key: value for key, value in given.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            unknown = first["type"] == "extra_forbidden"
            raise InvalidArgument(
                f"{path or 'settings'}: {where}: {'no such setting' if unknown else first['msg']}",
                hint=f"Known: {', '.join(cls.model_fields)}; see configs/ghost.example.yaml.",
            ) from None

    def check(self) -> None:
        """Refuse what would leave the hub open, and a backend that is none. Raises InvalidArgument, BackendUnavailable."""
        find_backend(self.backend or default_backend())
        if not self.auth and not self.on_loopback:
            raise InvalidArgument(
                f"{self.host} can be reached from elsewhere: without tokens the hub only listens on loopback",
                hint="Leave --no-auth out, or use --host 127.0.0.1.",
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidArgument("TLS needs both --tls-cert and --tls-key")

    @property
    def on_loopback(self) -> bool:
        import ipaddress

        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names a request may be addressed to, without a port."""
        everywhere = self.host in ("0.0.0.0", "::", "")  # noqa: S104
        own = () if everywhere else (f"[{self.host}]" if ":" in self.host else self.host,)
        return tuple(dict.fromkeys(name.lower() for name in (*LOOPBACK, *own, *self.allowed_hosts)))
