"""Scores of generated images, tables and molecules, and the language model that judges texts."""
