"""Helpers of the launcher that scripts and tests import."""
