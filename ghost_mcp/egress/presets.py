"""Names that belong together, as ``@pip`` in a policy. Each says where its list is from."""

from __future__ import annotations

__all__ = ["PRESETS"]

PRESETS: dict[str, tuple[str, ...]] = {
    # https://docs.pypi.org/api/ (the index, and the host of its files)
    "pip": ("pypi.org", "files.pythonhosted.org"),
    # https://docs.npmjs.com/cli/using-npm/registry (metadata and tarballs)
    "npm": ("registry.npmjs.org",),
    # https://www.debian.org/mirror/list and https://www.debian.org/security/
    "debian": ("deb.debian.org", "security.debian.org"),
    # https://api.github.com/meta, "domains": the site, archives, and where files and releases are served from
    "github": (
        "github.com",
        "api.github.com",
        "codeload.github.com",
        "*.githubusercontent.com",
    ),
}
