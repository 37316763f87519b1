"""The reducers besides the mean, one module a kind."""
