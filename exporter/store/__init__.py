"""Files in and out: strict readers, deterministic writers, folders that appear whole."""
