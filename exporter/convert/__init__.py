"""From one adapter format to another, where an exact form exists: read, write, compare, publish."""
