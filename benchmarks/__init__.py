"""Measurements of the library, with the scores that they need."""
