"""Engines for Python users, who have a cluster of their own: Spark and Ray.

Placement, retries and resources are the engine's, the collectives tfddl's. Neither pyspark nor ray
is loaded before it is used, and no TensorFlow but in the workers.
"""
