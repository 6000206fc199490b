"""Train a vision transformer from the cache alone: no teacher in memory."""
