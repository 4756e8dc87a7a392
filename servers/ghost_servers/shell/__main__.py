"""The shell server alone, over stdio."""

from ghost_servers.serving import run_alone
from ghost_servers.shell import TOOLSET

raise SystemExit(run_alone(TOOLSET))
