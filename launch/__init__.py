"""Launchers: from flags to artefacts and records."""
