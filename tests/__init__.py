"""Tests of the repository itself: conventions, lint rules, tools, plugins, bad input."""
