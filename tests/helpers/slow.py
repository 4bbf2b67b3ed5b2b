"""Which cases of a test run in ``make test``; the others run in ``make test-slow``."""

import pytest


def slow_but(cases, *quick):
    """Return ``cases`` as parameters marked slow, but for those at the places ``quick``."""
    return [
        case
        if place in quick
        else pytest.param(*(case if type(case) is tuple else [case]), marks=pytest.mark.slow)
        for place, case in enumerate(cases)
    ]
