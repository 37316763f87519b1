"""Every model family of the host: its own model pool and task pool, by its command line, against float64 loops."""
