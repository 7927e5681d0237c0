"""From raw files, public or a user's own, to logs: reading, checking, deriving, a quarantine for what is wrong."""
