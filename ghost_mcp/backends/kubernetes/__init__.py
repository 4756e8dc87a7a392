"""Caves in a Kubernetes cluster. The package's own name never hides the SDK's: imports here are absolute."""
