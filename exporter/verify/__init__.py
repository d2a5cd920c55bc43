"""Prove an artefact: re-read its bytes, run its engine, compare with the float32 reference."""
