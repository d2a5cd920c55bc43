"""Forms of a result: terminal, JSON and HTML."""
