"""MUFM."""
