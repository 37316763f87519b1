"""Members of an ensemble count by their certainty."""
