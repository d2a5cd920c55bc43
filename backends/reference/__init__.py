"""The float32 torch reference that every engine is compared with."""
