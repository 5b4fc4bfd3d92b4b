"""Tests of the backend and the worker, against real services; started by `run_tests.py`."""
