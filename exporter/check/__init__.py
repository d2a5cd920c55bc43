"""Checks of a model: every tensor accounted for, every value finite, masks that fit."""
