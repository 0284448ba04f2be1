"""Solvers of `A x = rhs`, for a whole batch of right-hand sides at once."""

from keras_structadv.solvers.conjugate_gradients import SolveInfo, conjugate_gradients
from keras_structadv.solvers.edge_preserving import (
    edge_preserving_preconditioner,
    solve_edge_preserving,
)
from keras_structadv.solvers.eigenpairs import smallest_eigenpairs
from keras_structadv.solvers.low_rank import project, recoloring_basis
from keras_structadv.solvers.screened_poisson import (
    DENSE_LIMIT,
    SOLVERS,
    solve_dct,
    solve_dense,
    solve_sparse,
)

__all__ = [
    "DENSE_LIMIT",
    "SOLVERS",
    "SolveInfo",
    "conjugate_gradients",
    "edge_preserving_preconditioner",
    "project",
    "recoloring_basis",
    "smallest_eigenpairs",
    "solve_dct",
    "solve_dense",
    "solve_edge_preserving",
    "solve_sparse",
]
