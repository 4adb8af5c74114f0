"""Configurations of the room `training`."""
