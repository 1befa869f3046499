"""Prints the table of models after its tests: `python -m pytest tests/models`."""

from collections import defaultdict

ROW, COLUMN, CELL = "row", "column", "cell"


def pytest_terminal_summary(terminalreporter, config):
    """One line a model, one column a promise; what is refused says why below."""
    cells, reasons = defaultdict(dict), {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            found = dict(report.user_properties)
            if report.when != "call" or ROW not in found:
                continue
            cell = found.get(CELL, "ok") if outcome == "passed" else "FAILED"
            if cell not in ("ok", "FAILED"):
                reasons.setdefault(cell, len(reasons) + 1)
                cell = f"refused ({reasons[cell]})"
            cells[found[ROW]][found[COLUMN]] = cell
    if not cells:
        return
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    width = max(len(row) for row in cells)
    terminalreporter.section("models")
    wide = {column: max(len(column), *(len(row.get(column, "-")) for row in cells.values())) for column in columns}
    for row, found in {"": {column: column for column in columns}, **cells}.items():
        shown = "  ".join(f"{found.get(column, '-'):<{wide[column]}}" for column in columns)
        terminalreporter.line(f"{row:<{width}}  {shown}".rstrip())
    for reason, number in reasons.items():
        terminalreporter.line(f"({number}) {reason}")
