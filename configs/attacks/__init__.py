"""Configurations of the room `attacks`."""
