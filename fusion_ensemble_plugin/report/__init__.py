"""Is the ensemble worth it, which members matter, can its probabilities be trusted: one report answers."""
