# Only this file runs the engine's builder.
"""Builds an image with BuildKit, which the engine has built in; its client must be one that can ask for it."""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT  # noqa: TID251 - two numbers; processes are anyio's
from typing import TYPE_CHECKING

import anyio
from anyio.streams.text import TextReceiveStream

from ghost_mcp._version import __version__
from ghost_mcp.errors import BackendUnavailable, GhostError, Internal, InvalidArgument, TimedOut
from ghost_mcp.images import known, machine, sources

if TYPE_CHECKING:
    from anyio.abc import Process

__all__ = ["build"]

SILENCE_S = 1800  # a compiler may think for long, but not so long
ANSWER_S = 60
TAIL_LINES, MAX_LINE, MAX_SHOWN = 12, 4000, 300
# From this client on the built-in way to BuildKit is gone: a plug-in, buildx, has it.
PLUGIN_FROM = 23
_STEP = re.compile(r"#\d+ \[([^\]]+)\] (.+)")
_NOISE = re.compile(r"--mount=\S+\s+|/run/step\s+|\s+")
_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")
_NO_BASE = re.compile(
    r"failed to (resolve|do request|solve.*metadata)|pull access denied|dial tcp|i/o timeout"
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class _Client:
    """A docker command that can build, with the variables it needs for that."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


async def build(
    name: str,
    *,
    base: str | None = None,
    fresh: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> known.Image:
    """Build one of NAMES, and return it; one that is there, made from the same inputs, is as good.

    ``base`` is the image it stands on (default: Debian's own, of the Dockerfile). ``fresh`` builds anew, with what
    Debian has repaired since. ``report`` gets a line for each step. Raises InvalidArgument, BackendUnavailable,
    TimedOut.
    """
    if name not in known.NAMES:
        raise InvalidArgument(
            f"no such image: {name[:64]}", hint=f"Images: {', '.join(known.NAMES)}."
        )
    inputs = known.inputs_of(name, base or "")
    there = None if fresh else await known.find(name, inputs)
    if there is not None:
        report(f"{known.reference(name)} is there, made from these files")
        return there
    client = await _client()
    labels = {known.NAME: name, known.INPUTS: inputs, known.BASE: base or ""}
    options = [*_options(name, labels, base), *(["--no-cache"] if fresh else []), *await _network()]
    with tempfile.TemporaryDirectory(prefix="ghost-image-") as folder:
        placed = _place(Path(folder), await machine.secrets())
        await _run([*client.argv, *options, *placed], client.env, report)
    made = await known.find(name, inputs)
    if made is None:
        raise Internal(f"the engine built {name}, and does not show it")
    return made


def _place(folder: Path, secrets: Mapping[str, str]) -> Iterator[str]:
    """Write context and secrets, which only we may read; returns how the builder is told of them."""
    context = folder / "context"
    sources.write_context(context)
    for name, text in secrets.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        yield from ("--secret", f"id={name},src={path}")
    yield from ("--file", str(context / sources.DOCKERFILE), str(context))


def _options(name: str, labels: Mapping[str, str], base: str | None) -> Iterator[str]:
    yield from ("--target", name)
    for reference in (known.reference(name), f"ghost-{name}:{__version__}"):
        yield from ("--tag", reference)
    for label, value in labels.items():
        yield from ("--label", f"{label}={value}")
    yield from ("--label", f"org.opencontainers.image.version={__version__}")
    if base is not None:
        yield from ("--build-arg", f"BASE={base}")
    # Proxies are the one kind of build argument that no image remembers.
    for proxy in _PROXIES:
        if proxy in os.environ:
            yield from ("--build-arg", proxy)


async def _network() -> list[str]:
    """An engine that has no network of its own for containers builds on its host's."""
    from ghost_mcp.backends.docker.engine import Engine

    engine = await Engine.open()
    try:
        bridges = await engine.ask(lambda client: client.networks(names=["bridge"]))
    finally:
        await engine.aclose()
    return [] if bridges else ["--network", "host"]


async def _client() -> _Client:
    """The first docker on the PATH that can build with BuildKit. Raises BackendUnavailable."""
    seen = []
    for program in _programs():
        if await _says(program, "buildx", "version"):
            return _Client((program, "buildx", "build", "--load"), {"BUILDKIT_PROGRESS": "plain"})
        version = await _says(program, "version", "--format", "{{.Client.Version}}")
        number = version.partition(".")[0]
        if number.isdigit() and int(number) < PLUGIN_FROM:
            return _Client(
                (program, "build"), {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
            )
        seen.append(f"{program} {version.strip()[:20] or '(no answer)'}")
    raise BackendUnavailable(
        f"no docker client here can build with BuildKit: {'; '.join(seen) or 'there is none'}",
        hint="From version 23 on the docker client needs its plug-in buildx. Install that (Debian 13, Ubuntu: "
        "docker-buildx; Docker's own packages: docker-buildx-plugin), or Debian 12's docker.io.",
    )


def _programs() -> list[str]:
    folders = filter(None, os.environ.get("PATH", "").split(os.pathsep))
    paths = dict.fromkeys(os.path.join(folder, "docker") for folder in folders)
    return [path for path in paths if os.access(path, os.X_OK)]


async def _says(*argv: str) -> str:
    """A docker client's answer; nothing when it fails. Its own version it says also without an engine."""
    with anyio.move_on_after(ANSWER_S):
        done = await anyio.run_process(argv, check=False, stdin=DEVNULL)
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
    return ""


async def _run(argv: list[str], env: Mapping[str, str], report: Callable[[str], None]) -> None:
    """Run a build to its end. Raises BackendUnavailable with the last lines, TimedOut when it falls silent."""
    last: deque[str] = deque(maxlen=TAIL_LINES)
    everything = {**os.environ, **env}
    async with await anyio.open_process(
        argv, env=everything, stdin=DEVNULL, stderr=STDOUT
    ) as process:
        try:
            async for line in _lines(process):
                last.append(line[:MAX_SHOWN])
                step = _STEP.match(line)
                if step and not step[1].startswith("internal"):
                    report(f"{step[1]}: {_NOISE.sub(' ', step[2]).strip()[:100]}")
            status = await process.wait()
        except BaseException:
            process.kill()
            raise
    if status:
        raise _failure("\n".join(last))


async def _lines(process: Process) -> AsyncIterator[str]:
    """The build's output by lines, bounded, without credentials of addresses."""
    assert process.stdout is not None  # noqa: S101 - a pipe, by default
    received, rest = TextReceiveStream(process.stdout, errors="replace"), ""
    while True:
        try:
            with anyio.fail_after(SILENCE_S):
                rest += await received.receive()
        except anyio.EndOfStream:
            break
        except TimeoutError:
            raise TimedOut("the build has been silent for half an hour and was ended") from None
        *lines, rest = re.split(r"\r\n|\n|\r", rest)
        for line in lines:
            yield _CREDENTIALS.sub(r"\1***@", line[:MAX_LINE])
        rest = rest[-(1 << 16) :]


def _failure(said: str) -> GhostError:
    hint = "What the builder said last is above; nothing of an unfinished step is kept."
    if _NO_BASE.search(said):
        script = sources.folder() / "bootstrap-base"
        hint = (
            "If no registry is reachable, make the base from Debian's packages and build on that: "
            f"{script} ghost-base, then: ghost image build --base ghost-base ..."
        )
    return BackendUnavailable(f"the build failed:\n{said}", hint=hint)
