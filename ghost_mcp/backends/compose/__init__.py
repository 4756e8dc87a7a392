"""Caves with side services: each is a Compose project."""
