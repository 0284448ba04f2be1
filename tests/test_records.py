"""The tables of the pages are what their commands print from the records."""

import pathlib
import re
import shlex

import numpy as np
import pytest

from experiments import paired, table, variants
from experiments.cells import objective
from experiments.records import read_records

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("docs/evidence.md", "experiments/README.md")
COMMAND = re.compile(r"`python -m experiments\.table ([^`]*--brief[^`]*)`")
TABLES = [
    (page, " ".join(arguments.split()))
    for page in PAGES
    for arguments in COMMAND.findall((ROOT / page).read_text())
]

pytestmark = pytest.mark.backends("tensorflow")


def test_there_are_tables():
    assert TABLES


@pytest.mark.parametrize("page, arguments", TABLES)
def test_the_table_is_that_of_the_records(page, arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    table.main(shlex.split(arguments))
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") > 3
    assert printed in (ROOT / page).read_text()


def test_the_variants_on_mnist_are_those_of_the_records():
    page = (ROOT / "docs/evidence.md").read_text()
    part = page.split("### Random starts, and")[1].split("\n### ")[0]
    told = {k: v[0] for k, v in rows_of(part).items() if k != "---"}
    records = read_records(ROOT / "experiments/results/variants.jsonl")
    printed = variants.report(records, "mnist-200")
    assert printed in (ROOT / "experiments/results/variants.txt").read_text()
    found = {k: v[0] for k, v in rows_of(printed).items()}

    def cell(row, place):
        number = r"([+-]?[\d.]+) ± ([\d.]+)(?: \(t (-?[\d.]+),)?"
        if not (match := re.match(number, found[row][place])):
            return ""
        value, error, t = match.groups()
        value = table.short(float(value), "+" if t else "")
        return f"{value} (t {t})" if t else f"{value} ± {table.short(float(error))}"

    assert told.pop("flow") and told.pop("statistics")
    assert len(told) == 11
    for name, cells in told.items():
        if name.startswith("fresh"):
            assert cells == [cell(name, place) for place in (1, 3, 4, 6, 7, 9)], name
            continue
        gains = [
            f"{float(found[f'{name}, momentum {x}'][10].split()[0]):.2f}"
            for x in (0.9, 0.99, 0.999)
        ]
        row = f"{name}, momentum 0.9"
        assert cells == [*gains, *(cell(row, place) for place in (1, 3, 4, 6))], name


def rows_of(text):
    """Returns the rows of the tables in a text by their first cells."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *cells = [
                cell.strip().removeprefix("**").removesuffix("**")
                for cell in line.strip("|").split("|")
            ]
            rows.setdefault(first, []).append(cells)
    return rows


def record(name):
    return (ROOT / "benchmarks/results" / name).read_text()


def test_the_audit_of_photographs_is_that_of_the_record():
    tables = [
        x.strip() for x in record("photographs.txt").split("\n\n") if x.startswith("|")
    ]
    assert len(tables) == 2
    for printed in tables:
        assert printed in (ROOT / "docs/evidence.md").read_text()


def test_the_table_of_attacks_is_that_of_the_record():
    page = (ROOT / "docs/evidence.md").read_text()
    part = page.split("## How strong the ten steps")[1].split("- **Rotations")[0]
    told = rows_of(part)
    for name, pair in rows_of(record("attack_strength.txt")).items():
        if name in ("attack", "---"):
            continue
        near, far = pair
        ((*losses, passes, times),) = told[name]
        assert losses == [row[i] for row in (near, far) for i in (1, 4, 5)], name
        for cell, place in ((passes, 6), (times, 7)):
            both = [near[place], far[place]]
            assert cell == ", ".join(dict.fromkeys(both)), name


def test_the_table_of_audits_is_that_of_the_record():
    table = [x for x in record("audit_time.txt").splitlines() if x.startswith("|")]
    assert len(table) == 4
    assert "\n".join(table) in (ROOT / "docs/benchmarks.md").read_text()


def test_what_rounded_products_do_is_that_of_the_record():
    text = record("precision.txt")
    found = re.findall(r"^\| (\d+) \| (.*?) \| (\w+) \| (.*) \|$", text, re.M)
    sides = {side for side, *_ in found}
    assert sides == {"28", "64", "224"}
    rows, extremes = {}, {}
    for side, field, kind, numbers in found:
        mean, most, gain, _, difference = numbers.split(" | ")
        rows.setdefault((side, field), []).extend([f"{mean}, {most}", gain, difference])
        name = field.removesuffix(", reused"), kind
        angle, loss = extremes.get(name, (0, 0))
        apart = abs(float(gain) - 1)
        extremes[name] = max(angle, float(most)), max(loss, apart)
    page = (ROOT / "docs/benchmarks.md").read_text()
    for names, cells in rows.items():
        assert f"| {' | '.join([*names, *cells])} |" in page
    told = {  # in docs/guides/backends.md
        ("flow", "TF32"): (0.1, 0.001),
        ("recolouring", "TF32"): (0.1, 0.001),
        ("recolouring, rank 8", "TF32"): (0.6, 0.001),
        ("flow", "bfloat16"): (0.6, 0.002),
        ("recolouring", "bfloat16"): (3, 0.002),
        ("recolouring, rank 8", "bfloat16"): (6, 0.002),
    }
    assert extremes.keys() == told.keys()
    for name, bounds in told.items():
        assert all(x < most for x, most in zip(extremes[name], bounds)), name


def test_the_table_of_several_devices_is_that_of_the_record():
    text = record("several_devices.txt")
    table = [x for x in text.splitlines() if x.startswith("|")]
    assert len(table) == 5
    page = " ".join((ROOT / "docs/benchmarks.md").read_text().split())
    for line in table:
        assert line in page
    assert text.split("\n\n")[-1].strip() in page


def test_the_tables_of_the_gpu_are_those_of_the_record():
    text, torch = record("accelerator.txt"), record("accelerator_torch.txt")
    page = (ROOT / "docs/benchmarks.md").read_text().split("## On a GPU")[1]
    columns = {}
    for place, printed in (("jax", text), ("torch", torch)):
        for part in re.split(r"\n\n(?=[a-z-]+, \d+ of \d+ px, )", printed)[1:]:
            model, _, precision, *_ = part.split("\n")[0].split(", ")
            columns[place, model, precision] = {
                name: f"{cells[0]} ms, {float(cells[1]):.2f}"
                for name, (cells, *_) in rows_of(part).items()
                if re.fullmatch(r"[\d.]+", cells[0])
            }
    steps, eager = {}, {}
    for name in columns["jax", "wide-resnet", "float32"]:
        cells = [column.get(name, "not timed") for column in columns.values()]
        assert len(cells) == 4 and f"| {name} | {' | '.join(cells)} |" in page
        steps[name] = cells[:2]
        eager[name] = float(cells[3].split()[-1])
    assert len(steps) == 10
    reused = [
        x.split()[-1] for k, v in steps.items() if "rate 1, reused" in k for x in v
    ]
    assert f"{min(reused)} to {max(reused)} of a plain" in " ".join(README.split())
    own = [x for x in steps if not re.match("plain|gradient only|.*, reused", x)]
    fresh = [cell.split()[-1] for name in own for cell in steps[name]]
    assert f"{min(fresh)} to {max(fresh)} with fresh" in " ".join(README.split())
    words = " ".join(page.split())
    halves = [
        re.findall(r"rate 0.5 \|.*\| 0(\.\d+) \|$", x, re.M) for x in (text, torch)
    ]
    assert [*map(len, halves)] == [4, 2]
    jax, other = (f"{min(half)} to {max(half)}" for half in halves)
    assert f"add {jax} of the time that those at every image add" in words
    assert f"where nothing is compiled, {other}." in words
    again = [x for name, x in eager.items() if "reused" in name]
    anew = [eager[name] for name in own]
    guide = " ".join((ROOT / "docs/guides/backends.md").read_text().split())
    assert f"{min(reused)} to {max(reused)} of a plain one on JAX" in guide
    assert f"and {min(again)} to {max(again)} on PyTorch" in guide
    assert f"{min(fresh)} to {max(fresh)}, and {min(anew)} to {max(anew)}." in guide
    fields = {}
    for count, size, name, ms, part in re.findall(
        r"^\| (\d+) of (\d+) px \| (.*?) \| (\S+) \| \w+ \| (\S+) \|$", text, re.M
    ):
        names = fields.setdefault(f"{size}x{size} x {count}", {})
        names[name.split(" (")[0]] = f"{ms} ms ({100 * float(part):.0f} %)"
    columns = ("solve", "flow and warp", "solve, the paper's dense inverse")
    assert len(fields) == 6
    for name, cells in fields.items():
        row = [cells.get(column, "not made") for column in (*columns, "recolouring")]
        assert f"| {name} | {' | '.join(row)} |" in page
    for error in re.findall(r"(?:relative|residual) \| (\S+) \|", text + torch):
        assert error in page

    def milliseconds(what):
        return re.findall(rf"\| {what}[^|]* \| (\S+) \| \w+ \|", torch)

    both, recoloured = (
        [*map(float, milliseconds(x))] for x in ("flow and warp", "recolouring")
    )
    dense, solve = (milliseconds(x)[0] for x in ("solve, the paper's", "solve"))
    assert f"the faster one, {dense} ms against {solve} ms" in words
    told = f"{min(both):.1f} to {max(both):.1f} ms there, a recolouring"
    assert f"{told} {min(recoloured):.0f} to {max(recoloured):.0f} ms." in words


README = (ROOT / "README.md").read_text()
DATA = {  # as the tables over several data sets name them
    "MNIST, 50": "mnist-50",
    "MNIST, 200": "mnist-200",
    "MNIST, 1,000": "mnist-1000",
    "digits": "digits",
    "glyphs": "glyphs",
}
NAMES = {
    "PGD by pixel norm (L-infinity)": "PGD, L-infinity",
}


@pytest.fixture
def printed(monkeypatch, capsys):
    """From words of a table's command to its rows, as the command prints them."""
    monkeypatch.chdir(ROOT)

    def rows(wanted):
        (arguments,) = (x for _, x in TABLES if wanted in x)
        table.main(shlex.split(arguments))
        return rows_of(capsys.readouterr().out)

    return rows


@pytest.fixture
def measured(printed):
    """The rows of the headline's tables, as their commands print them."""
    found = {}
    for name, data, file in (
        ("controls", "mnist-200", "controls"),
        ("defaults", "mnist-200", "defaults"),
        ("fifty", "mnist-50", "controls"),
        ("thousand", "mnist-1000", "controls"),
    ):
        rows = printed(
            f"--brief --control random-flow --data {data} "
            f"experiments/results/{file}.jsonl"
        )
        found[name] = {row: cells for row, (cells,) in rows.items()}
    return found


def test_the_table_of_the_readme_is_that_of_the_records(measured):
    text = README.split("<!-- table: mnist-200 -->")[1].split("<!--")[0]
    rows = rows_of(text)
    assert len(rows) >= 8
    searched, default = measured["controls"], measured["defaults"]
    for name, (cells,) in rows.items():
        if name not in ("training", "---"):
            row = NAMES.get(name, name)
            _, clean, _, near, _, far, _ = searched[row]
            told = [clean, near, far, default[row][1], default[row][3]]
            assert cells == [x.split()[0] for x in told], name
    seeds = {name: {row[0] for row in rows.values()} for name, rows in measured.items()}
    assert seeds == {
        "controls": {"seeds", "20", "---"},
        "defaults": {"seeds", "10", "---"},
        "fifty": {"seeds", "10", "---"},
        "thousand": {"seeds", "10", "---"},
    }
    assert "mean over 20 seeds" in README and "10 seeds. *Worst*" in README
    flow, *others = (
        r["settings"]["flow"]
        for r in runs("curves")
        if r["settings"]["adversary"] == "flow-reused"
    )
    assert others == [flow] * 4
    told = (
        f"the picture has `AdversarialFlow({flow['max_displacement']:.1f}, "
        f"smoothness={flow['smoothness']:.0f}, rate={flow['rate']:.2f})`"
    )
    assert told in " ".join(README.split())


def test_the_gains_of_the_readme_are_those_of_the_records(measured, printed):
    helps = next(line for line in README.splitlines() if "**helps**" in line)
    told = [
        ("controls", "adversarial flow, reused", 4),
        ("controls", "adversarial flow, three steps", 4),
        ("defaults", "adversarial flow, reused", 2),
        ("defaults", "adversarial flow, reused", 4),
    ]
    for name, row, place in told:
        difference = measured[name][row][place]
        t = float(re.search(r"\(t (.*)\)", difference)[1])
        assert t > 5 and difference.split()[0] in helps, (name, row)
    many = measured["thousand"]["adversarial flow, reused"][4].split()[0]
    (glyphs,) = printed("--data glyphs")["adversarial flow, reused"]
    glyphs = glyphs[4].split()[0]
    told = f"({many} with 1,000 training images, {glyphs} on printed characters)"
    assert told in helps
    grows = [
        f"{float(measured[data][f'adversarial flow, {row}'][4].split()[0]):.2f}"[1:]
        for data, row in (
            ("controls", "reused"),
            ("thousand", "reused"),
            ("fifty", "random start"),
        )
    ]
    page = " ".join((ROOT / "docs/should_i_use_it.md").read_text().split())
    told = (
        "With reused gradients they are {} at 1 pixel with 200 images and {} with "
        "1,000; with 50 it takes a random start ({})."
    )
    assert told.format(*grows) in page
    assert f"On printed characters they are [{hundredths(glyphs)}]" in page
    rows = measured["controls"]
    clean = [rows[x][2] for x in rows if x.startswith("adversarial flow")]
    assert all(abs(float(x.split()[0])) < 0.005 and "*" not in x for x in clean)
    many = float(measured["thousand"]["adversarial flow, reused"][2].split()[0])
    assert abs(many) < 0.005
    few, _, t = measured["fifty"]["adversarial flow, reused"][2].split()
    told = f"±.00 on 200 and 1,000 digits (+{float(few):.2f}".replace("0.", ".")
    assert told in README
    also = "or of recolourings beyond random ones; against random motions,"
    assert f" on 50, t {t.rstrip(')')}; " in README
    assert f" after three times the epochs), {also}" in README


def runs(file, data="mnist-200"):
    """The records of the runs on one data set and its test images."""
    return [
        record
        for record in read_records(ROOT / f"experiments/results/{file}.jsonl")
        if record["settings"]["data"] == data and record["held_out"] == "test"
    ]


def hundredths(value):
    """Formats the size of a fraction as `.12`."""
    return f"{abs(float(value)):.2f}"[1:]


def test_defaults_against_the_tuned_random_flow_are_as_the_readme_says():
    def near(file, adversary):
        return {
            r["seed"]: r["worst_case"][""]["both"]["1"]
            for r in runs(file)
            if r["settings"]["adversary"] == adversary
        }

    gains = {
        row: paired.differences(
            near("defaults", f"flow-{row}"), near("controls", "random-flow")
        )
        for row in ("three-steps", "random-start", "reused")
    }
    assert all(len(x) == 10 for x in gains.values())
    three, start, reused = (x.mean() for x in gains.values())
    assert abs(paired.t_and_p(gains["reused"])[0]) < 1 and abs(reused) < 0.01
    told = (
        f"over the *tuned* one {table.short(three, '+')} with three steps, "
        f"{table.short(start, '+')} with a random start, nothing with reused gradients"
    )
    assert told in README


def test_differences_to_pgd_and_to_two_random_flows_are_those_of_the_records():
    page = (ROOT / "docs/evidence.md").read_text()
    part = page.split("## Against PGD and two random flows")[1].split("\n## ")[0]
    told = rows_of(part)
    del told["data"], told["---"]
    names = {name: (data, "controls") for name, data in DATA.items()}
    names["MNIST, 200, defaults"] = "mnist-200", "defaults"
    assert told.keys() == names.keys()
    for name, (data, file) in names.items():
        printed = [
            rows_of(table.brief(runs(file, data), control))
            for control in ("pgd-linf", "random-flow-composed")
        ]
        assert [row[0] for row in told[name]] == [
            "reused",
            "random start",
            "three steps",
        ]
        for row, *cells in told[name]:
            found = [rows[f"adversarial flow, {row}"][0] for rows in printed]
            assert cells == [x[i] for x in found for i in (2, 4, 6)], (name, row)


def test_the_settings_that_won_are_those_of_the_records():
    page = (ROOT / "docs/evidence.md").read_text()
    part = page.split("## What the searches chose")[1].split("\n## ")[0]
    rows = rows_of(part)
    assert rows.pop("training") == [[*DATA]]
    del rows["---"]
    assert len(rows) == 7
    adversaries = {name: key for key, name in table.NAMES.items()}
    for column, (name, data) in enumerate(DATA.items()):
        flows = {
            record["settings"]["adversary"]: record["settings"]["flow"]
            for record in runs("controls", data)
        }
        for row, (cells,) in rows.items():
            form = "{max_displacement:.1f}, {smoothness:.0f}, {rate:.2f}"
            flow = flows[adversaries[row]]
            told = form.format(**flow) if flow else "default"
            assert cells[column] == told, (name, row)


def test_what_is_said_of_stronger_attacks_is_what_the_records_say():
    smooth, rough = [], []
    for record in runs("stronger_attack"):
        attack = record["settings"]["attack"]
        assert (attack["steps"], attack["restarts"], attack["count"]) == (20, 4, 200)
        (rough if "smoothness" in attack else smooth).append(record)
    names = ("adversarial flow, reused", "adversarial flow, random start")
    names += ("adversarial flow, three steps",)

    def near(records, control, place=4):
        rows = rows_of(table.brief(records, control))
        texts = [rows[name][0][place] for name in names]
        return [(float(x.split()[0]), x.split("(t ")[1].strip("-)*")) for x in texts]

    page = " ".join((ROOT / "docs/evidence.md").read_text().split())
    for told, records in (
        ("({}, {} and {} at 1", smooth),
        ("({}, {}, {}), about", rough),
    ):
        gains = [hundredths(gain) for gain, _ in near(records, "random-flow")]
        assert told.format(*gains) in page
    (reused, t), (start, t_start), (three, t_three) = near(rough, "pgd-linf")
    assert reused < start < 0 < three
    for told in (
        f"(by {hundredths(reused)} at 1 pixel, t {t})",
        f"({hundredths(start)}, t {t_start})",
        f"({hundredths(three)}, t {t_three})",
    ):
        assert told in page
    far = (
        hundredths(gain)
        for records in (rough, smooth)
        for gain, _ in near(records, "random-flow", 6)
    )
    told = "({}, {} and {} instead of {}, {} and {}), and PGD holds more than a random"
    assert told.format(*far) in page
    rows = rows_of(table.brief(rough, "random-flow"))
    pgd, start = (rows[name][0][5].split()[0] for name in ("PGD, L-infinity", names[1]))
    assert f"than a random start ({pgd} against {start})." in page
    assert "where PGD holds more and three steps most" in README
    flows = {r["settings"]["adversary"]: r["settings"]["flow"] for r in rough}
    own = {f"{flows[x]['smoothness']:.0f}" for x in flows if x.startswith("flow-")}
    (own,), control = own, flows["random-flow"]["smoothness"]
    assert f"(smoothness {own}; the random flow has {control:.0f})" in page


@pytest.fixture
def longer():
    """Each measure of the first ten seeds by the rows of the table of longer runs."""
    found, trials = {}, read_records(ROOT / "experiments/results/longer_search.jsonl")
    assert [trial["trial"] for trial in trials] == [*range(24)]
    best = max(trials, key=objective)
    assert best["trial"] >= 12  # else the longer search found nothing
    for record in [*runs("controls"), *runs("checks")]:
        settings = record["settings"]
        is_best = settings["flow"] == best["settings"]
        row = settings["adversary"], settings["epochs"], is_best
        worst = record["worst_case"][""]["both"]
        measures = record["accuracy"][""], worst["1"], worst["2"]
        for kind, value in enumerate(measures):
            if record["seed"] < 10:
                rows = found.setdefault(row, [{}, {}, {}])
                rows[kind][record["seed"]] = value
    return found


def test_longer_searches_and_trainings_are_those_of_the_records(longer):
    page = (ROOT / "docs/evidence.md").read_text()
    part = page.split("## More trials, more epochs")[1].split("\n## ")[0]
    rows = rows_of(part)
    del rows["training"], rows["---"]
    adversaries, told = {name: key for key, name in table.NAMES.items()}, {}
    for name, cells in rows.items():
        name, _, is_best = name.partition(", best of 24")
        for epochs, *rest in cells:
            told[adversaries[name], int(epochs), bool(is_best)] = rest
    names = ("flow-reused", "flow-random-start", "flow-three-steps")
    assert told.keys() == {x for x in longer if x[0] in ("random-flow", *names)}
    assert len(told) == 9
    for row, cells in told.items():
        control, expected = ("random-flow", row[1], False), []
        for ours, theirs in zip(longer[row], longer[control]):
            values = np.array([*ours.values()])
            assert len(values) == 10
            error = table.short(paired.standard_error(values))
            expected.append(f"{table.short(values.mean())} ± {error}")
            expected.append(minus(ours, theirs) if row != control else "")
        assert cells == expected, row
    text = " ".join(part.split())
    ahead = map(
        minus, longer["flow-reused", 60, False], longer["random-flow", 60, True]
    )
    ahead = [x.replace(" (t", ", t").rstrip(")") for x in ahead]
    assert "({}, and {})".format(*ahead[:2]) in text
    control = longer["random-flow", 180, False]
    gains = [*map(minus, control, longer["random-flow", 60, False])]
    clean, near = (x.removeprefix("+").rstrip(")").split(" (t ") for x in gains[:2])
    near[0] = hundredths(near[0])
    assert (
        f"of the random flow {clean[0]} in clean accuracy and {near[0]} at 1 pixel (t "
        f"{clean[1]} and {near[1]})"
    ) in text
    clean_180, near_180, far_180 = (
        [minus(longer[x, 180, False][kind], control[kind]) for x in names]
        for kind in range(3)
    )
    near_180, far_180 = (
        [hundredths(x.split()[0]) for x in column] for column in (near_180, far_180)
    )
    assert (
        "({}, {} and {} at 1 pixel, {}, {} and {} at 2)".format(*near_180, *far_180)
        in text
    )
    sizes = sorted(x.split()[0].lstrip("-") for x in clean_180)
    ts = sorted((x.split("(t ")[1].rstrip(")") for x in clean_180), reverse=True)
    told = f"the adversarial ones {sizes[0]} to {sizes[-1]} behind (t {ts[-1]} to "
    assert f"{told}{ts[0]};" in text
    assert f"; {clean_180[0].split()[0]} on 200 after three times" in README
    three = longer["flow-three-steps", 60, False]
    lead, lost, lost_far = (
        float(minus(a, b).split()[0]) for a, b in zip(control, three)
    )
    told = (
        f"gains {table.short(lead)} of clean accuracy over them, and holds "
        f"{hundredths(lost)} less at 1 pixel and {hundredths(lost_far)} less at 2"
    )
    assert told in text
    page = " ".join((ROOT / "docs/should_i_use_it.md").read_text().split())
    told = f"gave a random flow {clean[0]} of clean accuracy and {near[0]} in the worst"
    assert told in page


def minus(ours, theirs):
    """The paired difference of two rows, with its t."""
    difference = paired.differences(ours, theirs)
    t, _ = paired.t_and_p(difference)
    return f"{table.short(difference.mean(), '+')} (t {t:.1f})"


def test_larger_norms_of_pixels_are_as_the_records_say():
    found = {}
    for record in read_records(ROOT / "experiments/results/checks.jsonl"):
        settings = record["settings"]
        if settings["pixel"]:
            assert record["held_out"] == "validation"
            norm = settings["pixel"]["magnitude"][0]
            worst = record["worst_case"][""]["both"]["1"]
            values = found.setdefault((settings["adversary"], norm), [])
            values.append((record["accuracy"][""], worst))
    assert all(len(values) == 3 for values in found.values()) and len(found) == 6
    means = {row: np.mean(values, axis=0) for row, values in found.items()}
    for name in ("pgd-linf", "fgsm-linf"):
        assert np.all(means[name, 0.6] < means[name, 0.4])
    text = " ".join((ROOT / "docs/evidence.md").read_text().split())
    pgd, fgsm = (
        [table.short(x) for norm in (0.26, 0.4) for x in means[name, norm]]
        for name in ("pgd-linf", "fgsm-linf")
    )
    told = "from {} clean and {} at 1 pixel with a norm of .26 to {} and {} with .4"
    assert told.format(*pgd) in text
    assert "FGSM from {} and {} to {} and {}.".format(*fgsm) in text


def test_what_is_said_of_glyphs_is_what_the_records_say(printed):
    rows = {
        name.removeprefix("adversarial flow, "): cells
        for name, (cells,) in printed("--data glyphs").items()
    }
    page = (ROOT / "docs/evidence.md").read_text()
    text = " ".join(page.split("## Glyphs")[1].split("\n## ")[0].split())

    def difference(name, place=4):
        size, t = rows[name][place].rstrip(")*").split(" (t ")
        return hundredths(size), size.lstrip("+-"), t

    near = [difference(x)[0] for x in ("reused", "random start", "three steps")]
    told = "hold {} more of the characters at 1 pixel than the random flow, a random "
    assert (told + "start {}, three steps {};").format(*near) in text
    most = max(cells[5].split()[0] for cells in list(rows.values())[2:])
    assert f"at 2 pixels no row holds more than {most}." in text
    (_, *three), (_, *two) = (
        difference("three steps", 2),
        difference("two random flows", 2),
    )
    told = (
        "three steps ({}) and two random flows ({}) are ahead of one random flow by {} "
    )
    clean = [rows[x][1].split()[0] for x in ("three steps", "two random flows")]
    told = told.format(*clean, three[0]) + f"and {two[0]} (t {three[1]} and {two[1]})"
    assert told in text
    level = [difference(x, 2)[2] for x in ("reused", "random start")]
    assert "level with it (t {} and {})".format(*level) in text
    composed = rows_of(table.brief(runs("controls", "glyphs"), "random-flow-composed"))
    behind = [
        composed[f"adversarial flow, {x}"][0][2].lstrip("-").rstrip(")").split(" (t ")
        for x in ("reused", "random start")
    ]
    sizes, ts = zip(*behind)
    told = "and {} and {} behind two (t {} and {})"
    assert told.format(*sizes, *ts) in text
    ahead = [difference(x)[0] for x in ("FGM, L2", "PGD, L-infinity")]
    assert "hold {} and {} more than the random flow".format(*ahead) in text
    sign = difference("random sign")[0]
    assert f"With a random sign {sign} of the {near[0]} are there." in text
    alone = rows_of(table.brief(runs("controls", "glyphs"), "random-flow", "random"))
    best, three, one, reused = (
        alone[x][0][5].split()[0]
        for x in (
            "two random flows",
            "adversarial flow, three steps",
            "random flow",
            "adversarial flow, reused",
        )
    )
    told = f"({best}), then three steps ({three}); one random flow has {one}, reused"
    assert f"{told} gradients {reused}." in " ".join(page.split())


def test_what_is_said_of_recolourings_is_what_the_records_say(printed):
    rows = printed("--data colour-glyphs")
    names = [x for x in rows if x.startswith("adversarial recolouring")]
    gains = [cells[2] for name in names for cells in rows[name]]
    assert len(gains) == 6
    assert not any(x.startswith("+") and x.endswith("*") for x in gains)
    page = (ROOT / "docs/guides/strength_and_smoothness.md").read_text()
    text = " ".join(page.split("colour and class are independent")[1].split())
    same, unseen = zip(
        *(
            [f"{float(cells[1].split()[0]):.2f}"[1:] for cells in rows[name]]
            for name in (
                "plain",
                "random recolouring",
                "adversarial recolouring, random start",
                "adversarial recolouring, reused",
            )
        )
    )
    ranges = {
        record["settings"]["adversary"]: record["settings"]["recoloring"]["magnitude"]
        for record in read_records(ROOT / "experiments/results/controls.jsonl")
        if "magnitude" in record["settings"]["recoloring"]
    }
    plain, random, start, reused = unseen
    told = (
        f"accuracy in unseen colours rises from {plain} to {random} (random "
        f"recolourings of U(0, {ranges['random-recoloring']:.2g})), {start} "
        "(adversarial ones after a random start, "
        f"U(0, {ranges['recoloring-random-start']:.2g})) and {reused} (with reused "
        f"gradients, U(0, {ranges['recoloring-reused']:.2g}))"
    )
    assert told in text
    plain, random, start, reused = same
    assert f"it goes from {plain} to {random}, {start} and {reused} " in text
    _, jitter = rows["colour jitter"]
    told = f"with jitter of contrast and brightness it is {hundredths(jitter[1][:4])}."
    assert told in text


def test_the_costs_of_the_readme_are_those_of_the_record():
    rows = rows_of(record("step_overhead.txt"))
    costs = next(line for line in README.splitlines() if "**costs**" in line)

    def ratios(*names):
        return [float(cells[0].split()[0]) for name in names for cells in rows[name]]

    name = "flow, rate 1, reused gradients"
    reused = ratios(name, f"{name}, size unknown")
    told = f"flows: {min(reused)} to {max(reused)} of a plain step with reused"
    assert told in costs
    fresh = ratios("flow, rate 1", "flow, rate 1, random start")
    assert f"{min(fresh):.1f} to {max(fresh):.1f} with fresh" in costs
    steps = ratios("flow, rate 1, three steps")
    assert f"{round(sum(steps) / len(steps))} with three steps" in costs
    between = f"{min(reused):.2f} to {max(reused):.2f}"
    one = ratios("flow, rate 1")
    told = f"| {min(one):.2f} to {max(one):.2f} | {between} |"
    assert told in (ROOT / "docs/guides/fit.md").read_text()
    troubleshooting = " ".join((ROOT / "docs/troubleshooting.md").read_text().split())
    assert f"takes {between} times a plain step" in troubleshooting
    percent = f"{100 * min(reused) - 100:.0f} to {100 * max(reused) - 100:.0f} %"
    assert f"`fit`, {percent} of the time of" in README
    start = (ROOT / "docs/getting_started.md").read_text()
    assert f"It costs {percent} of a step" in start


def test_the_table_of_training_steps_is_that_of_the_record():
    page = (ROOT / "docs/benchmarks.md").read_text().split("## On a GPU")[0]
    told = rows_of(page)
    for name, cells in rows_of(record("step_overhead.txt")).items():
        if name == "---" or name.startswith("step,"):
            continue
        for a, b in (
            (", rate 1", " at every image"),
            (", rate 0.5", " at half of the images"),
            ("reused gradients", "reused"),
            ("size unknown", "size of the batch unknown"),
        ):
            name = name.replace(a, b)
        if "image" in name and "reused" not in name:
            name = re.sub("(images?)", r"\1, fresh", name)
        name = re.sub("^keras (.*)", r"`keras.layers.\1`", name)
        ratios = [x.split()[0] for x, _ in cells]
        (found,) = told.pop(name)
        assert found == (ratios + ["does not compile"])[:2], name
    assert not told.keys() - {"step", "---"}


def test_the_other_numbers_of_the_readme_are_those_of_the_records():
    rows = rows_of(record("photographs.txt"))

    def shown(row, place):
        return rows[row][0][place].split()[0].lstrip("0")[:3]

    (clean, colours), text = rows["0"], " ".join(README.split())
    assert clean[0] == colours[0]
    assert f"{clean[0].split()[0].lstrip('0')[:3]} right" in text
    flow = f"leave {shown('1', 1)}, adversarial ones {shown('1', 2)};"
    assert flow in text
    recoloring = rows["0.01"][0]
    told = [f"{float(recoloring[i].split()[0]):.2f}".lstrip("0") for i in (1, 2)]
    assert f"of .01 leave {told[0]} and {told[1]} (" in text
    solve = rows_of(record("solve_and_warp.txt"))["224x224 x 32"]
    milliseconds = next(cells[1] for cells in solve if cells[0] == "dct")
    assert f"{float(milliseconds.split()[0]):.0f} ms for 32 photographs" in text
    warp = next(cells[1] for cells in solve if cells[0] == "warp")
    assert f"the pixels takes {float(warp.split()[0]):.0f} ms more" in text
