"""Configurations of the room `defenses`."""
