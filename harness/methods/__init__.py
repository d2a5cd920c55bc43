"""Training methods, one a file, and the loop that they share."""
