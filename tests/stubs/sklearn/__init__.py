"""Replaces scikit-learn in the tests of the examples: Keras imports the real one at each start."""
