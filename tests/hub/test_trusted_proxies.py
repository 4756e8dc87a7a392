"""Behind a proxy that ends TLS: its word on how a client came is believed where the settings say so, and nowhere else."""

from __future__ import annotations

import httpx2
import pytest

from tests.serving import serving


@pytest.mark.parametrize(("trusted", "secure"), [("127.0.0.0/8", True), ("10.0.0.0/8", False)])
def test_a_cookie_is_secure_when_a_trusted_proxy_says_that_the_client_came_by_tls(
    trusted: str, secure: bool
) -> None:
    with (
        serving(config=f"backend: local\npool: 0\ntrusted_proxies: ['{trusted}']\n") as hub,
        httpx2.Client(base_url=hub.url, timeout=60) as client,
    ):
        forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
        entered = client.get(f"/?token={hub.token}", headers=forwarded)
        assert entered.status_code == 303
        assert ("secure" in entered.headers["set-cookie"].lower()) is secure
        client.cookies.clear()
        plain = client.get(f"/?token={hub.token}")
        assert "secure" not in plain.headers["set-cookie"].lower()
