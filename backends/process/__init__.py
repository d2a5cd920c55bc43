"""Sessions in a process of their own: a crash, a hang or a clash becomes a typed error."""
