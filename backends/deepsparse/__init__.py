"""deepsparse."""
