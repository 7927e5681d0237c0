"""Importers: from raw files, public or a user's own, to logs with a fitted schema and a quarantine for what is wrong."""
