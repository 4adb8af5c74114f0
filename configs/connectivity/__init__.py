"""Configurations of the room `connectivity`."""
