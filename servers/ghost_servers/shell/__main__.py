"""The shell server alone, over stdio."""

from ghost_servers.shell import TOOLSET
from ghost_servers.serving import run_alone

raise SystemExit(run_alone(TOOLSET))
