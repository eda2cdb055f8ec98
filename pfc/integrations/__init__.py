"""Measuring from inside training frameworks, imported only where they are used."""
