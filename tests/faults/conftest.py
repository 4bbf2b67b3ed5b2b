"""How many faults are tried, and the table of what came of them."""

import pytest


@pytest.fixture
def trials(request, record_property):
    """``trials(check, number, short)``: the faults to try, ``number`` of them or ``short``.

    A test that makes several checks of one row, or reports what it saw, adds
    ``record_property("saw", text)``.
    """

    def of(check, number, short):
        chosen = number if request.config.getoption("--all-trials") else short
        record_property("check", check)
        record_property("trials", chosen)
        return chosen

    return of


def pytest_terminal_summary(terminalreporter):
    """One row a check: trials, how they ended, seconds."""
    rows = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = getattr(report, "user_properties", [])
            name = dict(properties).get("check")
            if name is None:
                continue
            row = rows.setdefault(name, {"trials": 0, "seconds": 0.0, "ends": {}, "saw": []})
            row["trials"] += sum(value for key, value in properties if key == "trials")
            row["seconds"] += report.duration
            row["ends"][outcome] = row["ends"].get(outcome, 0) + 1
            row["saw"] += [value for key, value in properties if key == "saw"]
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| check | trials | tests | seconds | seen |")
    terminalreporter.write_line("|---|---|---|---|---|")
    for name, row in sorted(rows.items()):
        ends = ", ".join(f"{number} {outcome}" for outcome, number in row["ends"].items())
        saw = "; ".join(row["saw"])
        terminalreporter.write_line(
            f"| {name} | {row['trials']} | {ends} | {row['seconds']:.0f} | {saw} |"
        )
