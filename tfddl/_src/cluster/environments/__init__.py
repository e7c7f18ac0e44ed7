"""One small reader per environment: who takes part, as the engine's variables say it.

Each reads a mapping, never `os.environ`, and returns None where its engine has started nothing.
"""
