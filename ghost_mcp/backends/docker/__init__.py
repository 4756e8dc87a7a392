"""Caves in a Docker engine. The package's own name never hides the SDK's: imports here are absolute."""
