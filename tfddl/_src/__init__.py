"""The implementation. Nothing here is public: import from `tfddl`, not from `tfddl._src`.

docs/architecture.md draws the layers; a package imports only lower ones.
"""
