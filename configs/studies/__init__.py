"""Configs of studies: one question, several methods."""
