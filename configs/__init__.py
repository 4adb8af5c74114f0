"""Configurations: one `get_config(arg)` per experiment."""
