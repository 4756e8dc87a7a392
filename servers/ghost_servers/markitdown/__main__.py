"""The markitdown server alone, over stdio."""

from ghost_servers.markitdown import TOOLSET
from ghost_servers.serving import run_alone

raise SystemExit(run_alone(TOOLSET))
