"""Configurations of the room `reactivation`."""
