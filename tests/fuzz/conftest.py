"""Prints how many cases were run, and how long they took."""

import collections


def pytest_terminal_summary(terminalreporter):
    totals = {"cases": collections.Counter(), "seconds": collections.Counter()}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name in totals and report.when == "call":
                    test = report.nodeid.split("/")[-1].split("[")[0]
                    totals[name][test] += value
    cases, seconds = totals.values()
    if cases:
        terminalreporter.section("fuzzing: cases, seconds of processor time")
        for test, count in sorted(cases.items()):
            terminalreporter.write_line(f"{count:>8,} {seconds[test]:>7.0f}  {test}")
        total = f"{cases.total():>8,} {seconds.total():>7.0f}  in all"
        terminalreporter.write_line(total)
