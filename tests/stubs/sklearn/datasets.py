"""Drawn digits, of the shapes of scikit-learn's."""

from typing import Any

from tests import digits


def load_digits(*, return_X_y: bool = False) -> Any:
    drawn = digits.load_digits()
    return (drawn.data, drawn.target) if return_X_y else drawn
