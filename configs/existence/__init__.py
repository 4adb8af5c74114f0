"""Configurations of the room `existence`."""
