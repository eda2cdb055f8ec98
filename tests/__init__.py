"""Tests: naive twins in oracles.py, problems with known answers in problems.py."""
