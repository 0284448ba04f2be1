"""Prints how many cases were run."""

import collections


def pytest_terminal_summary(terminalreporter):
    counts = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "cases" and report.when == "call":
                    test = report.nodeid.split("/")[-1].split("[")[0]
                    counts[test] += value
    if counts:
        terminalreporter.section("fuzzing")
        for test, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:>8,} {test}")
        terminalreporter.write_line(f"{counts.total():>8,} cases")
