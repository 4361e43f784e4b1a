"""Programs that a row runs as processes of their own."""
