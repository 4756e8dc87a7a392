# The one list of commands: parsing, help and shell completion are made from it.
"""What the command line offers, as data. A command's module is imported when it runs."""

from __future__ import annotations

from typing import Any

__all__ = [
    "COMMANDS",
    "IMAGE_ACTIONS",
    "LANGUAGES",
    "MCP_CLIENTS",
    "SCOPES",
    "SHELLS",
    "TOKEN_ACTIONS",
    "Argument",
    "Command",
]

LANGUAGES = ("python", "bash", "javascript")
IMAGE_ACTIONS = ("build", "list", "pull")
SHELLS = ("bash", "zsh", "fish")
ACTIONS = ("set", "list", "rm", "rotate")
MCP_CLIENTS = ("claude-code", "claude-desktop", "cursor", "vscode", "codex")
TOKEN_ACTIONS = ("create", "list", "revoke")
SCOPES = ("read", "use", "manage", "admin")
ACTIONS = ("set", "list", "rm", "rotate")


class Argument:
    """What ``add_argument`` of argparse takes."""

    __slots__ = ("flags", "settings")

    def __init__(self, *flags: str, **settings: Any) -> None:
        self.flags = flags
        self.settings = settings

    @property
    def takes_value(self) -> bool:
        return "action" not in self.settings or self.settings["action"] == "append"

    @property
    def positional(self) -> bool:
        return not self.flags[0].startswith("-")


class Command:
    """One command: what it is for, ``module:function`` that runs it, what it takes."""

    __slots__ = ("arguments", "details", "summary", "where")

    def __init__(self, where: str, summary: str, *arguments: Argument, details: str = "") -> None:
        self.where = where
        self.summary = summary
        self.arguments = arguments
        self.details = details


def _flag(*flags: str, help: str) -> Argument:
    return Argument(*flags, action="store_true", help=help)


def _many(flag: str, metavar: str, help: str) -> Argument:
    return Argument(flag, metavar=metavar, action="append", default=[], help=help)


def _several(name: str, metavar: str, help: str) -> Argument:
    # Without a default, argparse says that it is required.
    return Argument(name, metavar=metavar, nargs="*", default=[], help=help)


JSON = _flag("--json", help="answer with one JSON document on stdout, and nothing else")
BACKEND = Argument(
    "--backend",
    metavar="NAME",
    help="the engine: local, docker, compose, kubernetes (default: $GHOST_BACKEND, else local)",
)
CAVE = Argument("cave", metavar="CAVE", help="the cave's name or id")
AUDIT = Argument(
    "--audit",
    metavar="WHERE",
    help="a folder for the audit trail, - for standard error (ghost serve: standard output), or off "
    "(default: $GHOST_AUDIT, else in the state folder)",
)
TOKENS_FILE = Argument(
    "--tokens-file",
    metavar="FILE",
    help="the tokens that several hubs share (default: those of the state folder)",
)
CLIENT = Argument("client", metavar="CLIENT", choices=MCP_CLIENTS, help=", ".join(MCP_CLIENTS))
SCOPE = Argument(
    "--scope",
    metavar="SCOPE",
    choices=("user", "project"),
    default="user",
    help="user (default): for all you do; project: for the current folder",
)
DRY_RUN = _flag("--dry-run", help="show what would change, and write nothing")

COMMANDS: dict[str, Command] = {
    "create": Command(
        "caves:create",
        "make a cave that lives until it is destroyed or its time is over",
        Argument("name", metavar="NAME", help="1 to 40 of a-z, 0-9 and -"),
        Argument(
            "--image",
            metavar="IMAGE",
            help="a root tree (local) or an image reference; default: the backend's own",
        ),
        Argument("--cpu", metavar="N", type=float, help="processors, for example 0.5"),
        Argument("--memory", metavar="SIZE", help="for example 512m or 2g"),
        Argument("--pids", metavar="N", type=int, help="processes and threads at most"),
        Argument("--disk", metavar="SIZE", help="for the cave's files together"),
        Argument("--gpus", metavar="GPUS", help="docker, compose: all, how many, or device=ID,ID"),
        Argument(
            "--timeout", metavar="SPAN", help="ends the cave so long after its start: 90s, 10m, 2h"
        ),
        Argument(
            "--idle-timeout", metavar="SPAN", help="ends the cave so long after its last call"
        ),
        Argument(
            "--network",
            metavar="MODE",
            choices=("none", "allow", "open"),
            help="none (default); allow: what --allow lists; open: the internet, never this machine",
        ),
        _many(
            "--allow",
            "RULE",
            "reachable: example.org, *.example.org, HOST:PORT, 10.0.0.0/8, @pip, @npm, @debian, @github (repeatable)",
        ),
        _many(
            "--env", "KEY=VALUE", "a variable for its programs; KEY alone takes yours (repeatable)"
        ),
        _many(
            "--secret",
            "NAME",
            "a secret for its programs: as set with ghost secret, else your variable (repeatable)",
        ),
        Argument(
            "--workspace",
            metavar="DIR",
            help="a folder of yours as /workspace, instead of the cave's own; docker: also volume:NAME",
        ),
        _many("--label", "KEY=VALUE", "a label (repeatable)"),
        Argument(
            "--file",
            metavar="FILE",
            help="a compose file of yours: its services run beside the cave (compose)",
        ),
        _flag("--vnc", help="start its desktop, if the image has one"),
        _flag("--code-server", help="start VS Code for the browser, if the image has it"),
        _flag("--jupyter", help="start JupyterLab, if the image has it"),
        Argument(
            "--service",
            metavar="NAME",
            help="the cave's name among them, or the one that it takes the place of (default: cave)",
        ),
        BACKEND,
        JSON,
    ),
    "exec": Command(
        "programs:run",
        "run code, or a program, in a cave",
        CAVE,
        Argument(
            "code",
            metavar="CODE",
            nargs="?",
            help="code to run; a program and its arguments go after --",
        ),
        Argument(
            "--language",
            metavar="LANGUAGE",
            choices=LANGUAGES,
            default="python",
            help="python (default), bash or javascript",
        ),
        _flag("-i", "--interactive", help="pass input on, also from a terminal"),
        _flag("-t", "--tty", help="give it a terminal; -it without code opens a shell"),
        Argument("--cwd", metavar="DIR", help="its working directory (default: /workspace)"),
        _many("--env", "KEY=VALUE", "a variable for it; KEY alone takes yours (repeatable)"),
        Argument(
            "--timeout",
            metavar="SPAN",
            help="ends it and all it started after so long; exit code 124",
        ),
        BACKEND,
        JSON,
        details="ghost exec CAVE -- PROGRAM ARGUMENT... runs a program. The exit code is the program's.",
    ),
    "list": Command("caves:list_caves", "list the caves", BACKEND, JSON),
    "info": Command(
        "caves:info",
        "show a cave: limits and use, services, what is really enforced",
        CAVE,
        BACKEND,
        JSON,
    ),
    "top": Command(
        "top:top",
        "show what the caves use, beside what they may use, again and again",
        _several("caves", "CAVE", help="names or ids (default: all that run)"),
        _flag("--once", help="only once, as --json does; else until Ctrl-C"),
        Argument(
            "--interval",
            metavar="SECONDS",
            type=float,
            default=2.0,
            help="so long between two looks (default: 2)",
        ),
        BACKEND,
        JSON,
        details="A narrow terminal gets fewer columns. Bytes of the network are those of closed connections.",
    ),
    "start": Command(
        "caves:start", "bring a stopped, paused or ended cave back", CAVE, BACKEND, JSON
    ),
    "stop": Command(
        "caves:stop",
        "end all processes of a cave and keep its files",
        CAVE,
        _flag("--pause", help="freeze the processes instead of ending them"),
        BACKEND,
        JSON,
    ),
    "destroy": Command(
        "caves:destroy",
        "remove caves and everything in them",
        _several("caves", "CAVE", help="names or ids"),
        _flag("--all", help="every cave, those of live sessions excepted"),
        BACKEND,
        JSON,
    ),
    "allow": Command(
        "network:allow",
        "let a live cave reach one more name or address",
        CAVE,
        Argument(
            "rule", metavar="RULE", help="as for create --allow: example.org, HOST:PORT, @pip"
        ),
        Argument("--for", dest="span", metavar="SPAN", help="only so long: 90s, 10m, 2h"),
        BACKEND,
        JSON,
    ),
    "egress": Command(
        "network:egress",
        "show the connections a cave made or was refused",
        CAVE,
        _flag(
            "-f",
            "--follow",
            help="go on until interrupted, and serve the cave's network meanwhile",
        ),
        BACKEND,
        JSON,
    ),
    "logs": Command(
        "caves:logs",
        "show a cave's log",
        CAVE,
        _flag("-f", "--follow", help="go on until the cave ends"),
        Argument("--service", metavar="NAME", help="of a service beside it (compose)"),
        BACKEND,
        JSON,
    ),
    "secret": Command(
        "secret:run",
        "keep secrets for caves, sealed on this machine",
        Argument("action", metavar="ACTION", choices=ACTIONS, help="set, list, rm or rotate"),
        _several("names", "NAME", help="one to set, any number to rm"),
        Argument("--owner", metavar="OWNER", default="", help="whose (default: yours)"),
        JSON,
        details="set reads the value from stdin, byte for byte, or asks for it. rotate changes the key that "
        "seals them. A cave gets them with: ghost create CAVE --secret NAME",
    ),
    "mcp": Command(
        "tools:mcp",
        "serve the sixteen tools to an MCP client, over stdin and stdout",
        Argument(
            "--server",
            metavar="SERVER",
            help="only the tools of browser, file, shell or markitdown",
        ),
        Argument(
            "--cave",
            metavar="CAVE",
            help="a cave that is there, instead of one that ends with the connection",
        ),
        AUDIT,
        BACKEND,
    ),
    "serve": Command(
        "hub:serve",
        "serve the tools over HTTP: MCP at /mcp, REST at /v1",
        Argument("--host", metavar="HOST", help="the address to listen on (default: 127.0.0.1)"),
        Argument(
            "--port", metavar="PORT", type=int, help="the port; 0 takes a free one (default: 8000)"
        ),
        Argument(
            "--config", metavar="FILE", help="settings as YAML; see configs/ghost.example.yaml"
        ),
        Argument("--tls-cert", metavar="FILE", help="a certificate (PEM): serve HTTPS"),
        Argument("--tls-key", metavar="FILE", help="the certificate's key (PEM)"),
        _flag("--no-auth", help="ask for no token; on loopback only"),
        TOKENS_FILE,
        AUDIT,
        BACKEND,
    ),
    "token": Command(
        "hub:token",
        "make, list and revoke the tokens that ghost serve asks for",
        Argument("action", metavar="ACTION", choices=TOKEN_ACTIONS, help="create, list or revoke"),
        Argument("id", metavar="ID", nargs="?", help="which one to revoke"),
        Argument("--owner", metavar="NAME", help="whose caves it reaches (default: yours)"),
        Argument(
            "--scope",
            metavar="SCOPE",
            choices=SCOPES,
            default="manage",
            help="read, use, manage (default) or admin; each includes those before it",
        ),
        Argument("--expires", metavar="SPAN", help="ends it so long from now: 12h, 30d"),
        Argument("--note", metavar="TEXT", default="", help="what it is for"),
        TOKENS_FILE,
        JSON,
    ),
    "preview": Command(
        "preview:link",
        "print a link to what listens on a port of a cave, for a browser",
        CAVE,
        Argument(
            "target",
            metavar="PORT",
            help="a port, SIDE:PORT of a compose cave's side service, or the name of a service",
        ),
        Argument(
            "--hub",
            metavar="URL",
            default="http://127.0.0.1:8000",
            help="where ghost serve listens (default: %(default)s)",
        ),
        TOKENS_FILE,
        JSON,
        details="The link is good once, within a minute; the browser that opens it is let in for twelve hours. "
        "It takes the token in GHOST_TOKEN, or else makes one of yours for this.",
    ),
    "gc": Command(
        "gc:gc",
        "remove caves that have ended, and what broken-off work left behind",
        _flag("--dry-run", help="only say what would be removed"),
        BACKEND,
        JSON,
    ),
    "call": Command(
        "tools:call",
        "run one tool, as an MCP client would",
        Argument("tool", metavar="TOOL", help="for example file_read"),
        _several(
            "arguments",
            "KEY=VALUE",
            help="its arguments; KEY:=JSON for a value that is no text",
        ),
        Argument(
            "--cave", metavar="CAVE", help="a cave that is there, instead of one made for this call"
        ),
        Argument("--save", metavar="DIR", help="a folder for the pictures of the answer"),
        BACKEND,
        JSON,
    ),
    "audit": Command(
        "audit:show",
        "show which tools were called, by whom, where, and how it ended",
        Argument("--cave", metavar="CAVE", help="in this cave: NAME or OWNER/NAME"),
        Argument("--owner", metavar="OWNER", help="of this owner"),
        Argument("--tool", metavar="TOOL", help="of this tool"),
        Argument("--since", metavar="SPAN", help="of the last 90s, 10m, 2h, 1d"),
        _flag("--failed", help="only those that did not end well"),
        _flag("-f", "--follow", help="go on with what comes"),
        _flag("--json", help="one JSON document a line, for each call"),
        details="Arguments and answers are not kept: only their sizes, and a digest of the arguments.",
    ),
    "install": Command(
        "install:install",
        "put Ghost into an MCP client's configuration",
        CLIENT,
        Argument(
            "--http",
            metavar="URL",
            nargs="?",
            const="http://127.0.0.1:8000/mcp",
            help="use the hub at that address instead of starting one (default: %(const)s)",
        ),
        Argument(
            "--token-file",
            metavar="FILE",
            help="a file with the hub's token (default: $GHOST_TOKEN)",
        ),
        SCOPE,
        DRY_RUN,
        JSON,
        details="What was there is kept beside the file. A token is written only into a file of the user.",
    ),
    "uninstall": Command(
        "install:uninstall",
        "take Ghost out of an MCP client's configuration",
        CLIENT,
        SCOPE,
        DRY_RUN,
        JSON,
    ),
    "image": Command(
        "image:run",
        "build Ghost's own container images, list them, pull others",
        Argument("action", metavar="ACTION", choices=IMAGE_ACTIONS, help="build, list or pull"),
        _several(
            "names",
            "IMAGE",
            help="to build: runtime, slim, desktop, full; to pull: any reference",
        ),
        Argument(
            "--base",
            metavar="IMAGE",
            help="what they stand on, where no registry is reachable (default: Debian's own)",
        ),
        _flag("--fresh", help="build anew, with what Debian has repaired since"),
        Argument("--sbom", metavar="DIR", help="write what is in them there, as CycloneDX"),
        JSON,
    ),
    "doctor": Command(
        "doctor:run", "say what is here and what is missing, and try the walls of a cave", JSON
    ),
    "demo": Command(
        "demo:run",
        "let a real MCP client use the tools, step by step",
        Argument(
            "--folder",
            metavar="DIR",
            default="ghost-demo",
            help="where the screenshot goes (default: ghost-demo)",
        ),
        JSON,
    ),
    "version": Command("about:version", "say which version this is", JSON),
    "completion": Command(
        "completion:script",
        "print what a shell needs to complete these commands",
        Argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish"),
        JSON,
    ),
}
