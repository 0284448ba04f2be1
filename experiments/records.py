"""Files of records: one line of JSON for each run."""

import fcntl
import json
import os
import pathlib
import sys


def read_records(path: pathlib.Path) -> list[dict]:
    """Reads the records of a results file; a missing file has none.

    Skips an incomplete line, as an interrupted run leaves it, and says so.
    """
    records = []
    lines = path.read_bytes().split(b"\n") if path.exists() else ()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            print(
                f"{path}, line {number}: skipped, because it is not a whole record.",
                file=sys.stderr,
            )
    return records


def append_record(path: pathlib.Path, record: dict) -> None:
    """Appends a record to a results file, as one line of JSON.

    Several processes may append to one file. On a full disk the file stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        line = json.dumps(record).encode() + b"\n"
        if file.read(1) not in (b"", b"\n"):  # after an incomplete line
            line = b"\n" + line
        try:
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise
