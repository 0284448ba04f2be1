"""Searches the hyperparameters of an adversary on the validation set, with Optuna.

    python -m experiments.search --config table1/cifar10-flow-base [--trials 40]
        [--seeds 1] [--storage search.db] [--set KEY=VALUE ...] [--smoke]

A database holds the study, so that an interrupted search resumes and several processes
or machines can share one. Trials use the validation set and seeds that no table uses.
"""

import argparse
import statistics

import optuna

from experiments.cells import ADVERSARIES, Cell, load_cells
from experiments.datasets import DESCRIPTIONS
from experiments.runs import train

FIRST_SEED = 1000


def suggest(trial: optuna.Trial, cell: Cell) -> list[str]:
    """Draws the settings of a trial, as `KEY=VALUE` for `load_cells`.

    The ranges of displacement and smoothness scale with the size of the images.

    Args:
        trial: the trial that draws the values.
        cell: the cell whose adversary is searched.

    Raises:
        ValueError: if the cell has no adversary.
    """
    if ADVERSARIES[cell.adversary] is None:
        raise ValueError(
            f"Received the cell {cell.name}, which has no adversary. Pass a cell with "
            "one."
        )
    table = ADVERSARIES[cell.adversary][1]
    side = DESCRIPTIONS[cell.data].shape[0]
    if table == "flow":
        values = {
            "max_displacement": trial.suggest_float(
                "max_displacement", side / 32, side / 4, log=True
            ),
            "smoothness": trial.suggest_float(
                "smoothness", side**2 / 100, 2 * side**2, log=True
            ),
        }
    else:
        values = {
            "magnitude": trial.suggest_float("magnitude", 0.02, 0.8, log=True),
            "coherence": trial.suggest_float("coherence", 0.1, 10, log=True),
        }
    values["rate"] = trial.suggest_float("rate", 0.25, 1.0, step=0.25)
    return [f"{table}.{key}={value:.4g}" for key, value in values.items()]


def main(arguments: list[str] | None = None) -> None:
    """Runs the missing trials and prints the best of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="one cell")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each trial")
    parser.add_argument("--storage", default="search.db", help="file of the database")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--smoke", action="store_true", help="two steps, few images")
    options = parser.parse_args(arguments)
    (cell,) = load_cells(options.config, options.set)
    name = f"{cell.name}-{cell.digest()}-{options.seeds}"
    study = optuna.create_study(
        study_name=f"{name}-smoke" if options.smoke else name,
        storage=f"sqlite:///{options.storage}",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(),  # with a seed, resuming repeats trials
    )

    def objective(trial: optuna.Trial) -> float:
        changes = suggest(trial, cell)
        trial.set_user_attr("settings", changes)
        (changed,) = load_cells(options.config, [*options.set, *changes])
        accuracies = []
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            record = train(changed, seed, held_out="validation", smoke=options.smoke)[1]
            accuracies += record["accuracy"].values()
        return statistics.fmean(accuracies)

    complete = [optuna.trial.TrialState.COMPLETE]
    ended = len(study.get_trials(states=complete))
    missing = max(0, options.trials - ended)
    print(f"{ended} trials are there, {missing} to do", flush=True)
    # Other processes may work on the same study.
    stop = optuna.study.MaxTrialsCallback(options.trials, states=complete)
    study.optimize(objective, missing, callbacks=[stop], show_progress_bar=True)
    print(f"\nbest validation accuracy {study.best_value:.4f}, with")
    print(f"    --set {' '.join(study.best_trial.user_attrs['settings'])}")


if __name__ == "__main__":
    main()
