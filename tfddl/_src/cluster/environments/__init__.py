"""Readers of the variables that launchers and engines set, one module for each.

They read a mapping, never `os.environ`, and return None where their engine hasn't started this
process.
"""
