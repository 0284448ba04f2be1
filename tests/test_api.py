"""The surface of the package: a change to it has to be meant."""

import ast
import inspect
import pathlib

import pytest

import keras_structadv as ksa

PACKAGE = pathlib.Path(ksa.__file__).parent
NAMES = [
    "AdversarialFlow",
    "AdversarialRecoloring",
    "AdversarialTraining",
    "GradientStore",
    "RandomFlow",
    "RandomRecoloring",
    "RefreshSnapshot",
    "RobustnessReport",
    "WorstCaseAccuracy",
    "adversarial_flow",
    "adversarial_recoloring",
    "datasets",
    "dense_image_warp",
    "evaluate_robustness",
    "per_image_gradients",
    "precompute_basis",
    "random_flow",
    "visualization",
]
COMMON = (
    "rate=0.5, target=None, steps=1, step_size=None, random_start=False, loss=None, "
    "value_range=(0, 255), seed=None, data_format=None, bounding_box_format=None, "
    "name=None, dtype=None"
)
RANDOM = (
    "rate=0.5, value_range=(0, 255), seed=None, data_format=None, "
    "bounding_box_format=None, name=None, dtype=None"
)
SIGNATURES = {
    "AdversarialFlow": "(max_displacement=None, smoothness=None, alpha=None, "
    f"solver='dct', *, {COMMON}, **kwargs)",
    "AdversarialFlow.bind": "(self, model, loss=None, snapshot=False)",
    "AdversarialFlow.call": "(self, images, labels=None, sample_weight=None, "
    "training=None)",
    "AdversarialRecoloring": "(magnitude=0.1, coherence=1.0, damping=None, "
    "edge_scale=0.05, lam=None, rank=None, rtol=0.1, max_iterations=50, "
    f"*, {COMMON}, **kwargs)",
    "AdversarialTraining": "(layer=None, *, gradient='fresh', schedule=None)",
    "GradientStore": "(capacity=65536, size=None, backup_dir=None, "
    "delete_checkpoint=True)",
    "AdversarialFlow.fields": "(self, images, labels=None)",
    "RandomFlow": f"(max_displacement=None, smoothness=None, *, {RANDOM}, **kwargs)",
    "RandomRecoloring": "(magnitude=0.1, coherence=1.0, damping=None, "
    f"edge_scale=0.05, *, rtol=0.1, max_iterations=50, {RANDOM}, **kwargs)",
    "random_flow": "(images, *, smoothness=None, max_displacement=None, seed=None)",
    "RobustnessReport.band": "(self, name, level=0.95, draws=1000)",
    "RobustnessReport.load": "(folder)",
    "RobustnessReport.plot": "(self)",
    "RobustnessReport.plot_worst": "(self, count=6, class_names=None)",
    "RobustnessReport.save": "(self, folder)",
    "RobustnessReport.strength_at": "(self, accuracy=0.5)",
    "WorstCaseAccuracy": "(x, y=None, perturbation=None, *, strength, steps=10, "
    "restarts=1, metric=None, batch_size=64, seed=0, "
    "name='val_worst_case_accuracy')",
    "evaluate_robustness": "(model, x, y=None, perturbation=None, *, strengths, "
    "steps=10, restarts=1, random=16, metric=None, batch_size=64, seed=None, "
    "verbose=1)",
    "RefreshSnapshot": "(layer, *, every='epoch')",
    "adversarial_flow": "(images, gradients, *, smoothness=None, "
    "max_displacement=None, alpha=None, solver='dct')",
    "adversarial_recoloring": "(images, gradients, *, magnitude=0.08, coherence=1.0, "
    "damping=None, edge_scale=0.05, lam=None, rank=None, rtol=0.1, "
    "max_iterations=50, value_range=(0, 255))",
    "dense_image_warp": "(images, flow, *, interpolation='bilinear')",
    "per_image_gradients": "(model, images, labels=None, *, loss=None, target=None)",
    "precompute_basis": "(images, path, rank=8, *, coherence=1.0, damping=None, "
    "edge_scale=0.05, value_range=(0, 255), dtype='float16', batch_size=32, verbose=1)",
    "datasets.load_colour_glyphs": "(train_typefaces=8, colours='unseen', "
    "held_out='test', seed=0)",
    "datasets.load_digits": "(train_size=200, seed=0)",
    "datasets.load_glyphs": "(train_typefaces=6, seed=0)",
    "datasets.load_mnist_5k": "(train_size=200, seed=0)",
    "datasets.load_photographs": "(size=64, crops=20, seed=0)",
    "visualization.plot_recoloring": "(images, gradients, perturbations, *, "
    "before=None, after=None, value_range=(0, 255))",
    "visualization.plot_flow": "(images, flows, *, before=None, after=None, "
    "value_range=(0, 255), arrows=14)",
}
# Each stage imports only from the stages before it.
STAGES = [
    {"backends.train_step", "backends.tape"},
    {"backends.keras_state"},
    {"backends.base"},
    {"backends.tensorflow", "backends.jax", "backends.torch"},
    {"backends.current"},
    {"backends.snapshot"},
    {"backends"},
    {"differences", "checks", "defaults", "files"},
    {"typefaces"},
    {"datasets"},
    {"scaling", "dct", "operators.screened_poisson", "operators.edge_preserving"},
    {"operators"},
    {"solvers.conjugate_gradients"},
    {"solvers.screened_poisson", "solvers.edge_preserving"},
    {"solvers.eigenpairs"},
    {"solvers.low_rank"},
    {"solvers", "warp"},
    {"gradients.inference", "gradients.inputs", "gradients.loss"},
    {"gradients.labels", "gradients.outputs"},
    {"gradients.per_image"},
    {"gradients"},
    {"flow", "recoloring"},
    {"basis", "visualization"},
    {
        "layers",
        "layers.arguments",
        "layers.contract",
        "layers.selection",
        "layers.layout",
        "layers.steps",
        "layers.value_range",
    },
    {"layers.passes", "layers.masks_boxes_points"},
    {"layers.binding"},
    {"layers.hooks"},
    {"layers.adversary"},
    {"layers.base"},
    {"layers.adversarial_flow", "layers.adversarial_recoloring"},
    {"layers.random_flow", "layers.random_recoloring"},
    {
        "audit.metrics",
        "audit.data",
        "audit.pictures",
        "audit.plots",
        "audit.report_file",
    },
    {"audit.attack"},
    {"audit.tally"},
    {"audit.report"},
    {"audit.audit"},
    {"audit.evaluate", "audit.worst_case_accuracy"},
    {"audit", "audit.command"},
    {"__main__"},
    {"training.fingerprint", "training.store_file", "training.measures"},
    {"training.gradient_store"},
    {"training.batch", "training.kept_gradients"},
    {"training.fresh_step"},
    {"training.reuse_step", "training.fit"},
    {"training.adversarial_training", "training.refresh_snapshot"},
    {"training"},
    {""},
]


def resolve(name):
    value = ksa
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_names():
    assert ksa.__all__ == sorted(NAMES, key=lambda n: (n[0].islower(), n))
    assert all(hasattr(ksa, name) for name in NAMES)


def bare_signature(value):
    signature = inspect.signature(value)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    empty = inspect.Signature.empty
    return str(signature.replace(parameters=bare, return_annotation=empty))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert bare_signature(resolve(name)) == SIGNATURES[name]


def test_common_arguments():
    base = ksa.AdversarialFlow.__base__
    assert bare_signature(base) == f"(*, {COMMON}, **kwargs)"


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix("__init__").rstrip("."), path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.module == "keras_structadv":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("keras_structadv."):
                yield node.module.removeprefix("keras_structadv.")


def test_imports_go_one_way():
    stage = {name: i for i, names in enumerate(STAGES) for name in names}
    for name, path in modules():
        for other in imported(path):
            assert stage[other] < stage[name], f"{name or '__init__'} imports {other}"


FRAMEWORKS = ("tensorflow", "jax", "torch")


def test_frameworks_are_imported_in_backends_only_and_inside_functions():
    for name, path in modules():
        tree = ast.parse(path.read_text())
        top = set(map(id, tree.body))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                origin = (getattr(node, "module", None) or names[0]).split(".")[0]
                inside = name.startswith("backends.") and id(node) not in top
                assert origin not in FRAMEWORKS or inside, name


def test_files_are_short():
    lengths = sorted(len(path.read_text().splitlines()) for _, path in modules())
    assert lengths[-1] <= 300
    assert lengths[len(lengths) // 2] <= 120


def test_public_functions_have_type_hints_and_docstrings():
    for name, value in inspect.getmembers(ksa):
        if inspect.isfunction(value):
            hints = inspect.get_annotations(value)
            assert set(inspect.signature(value).parameters) <= set(hints), name
            for section in ("Args:", "Returns:", "Raises:", "Reference:"):
                assert section in value.__doc__, f"{name}: {section}"


def test_public_names_have_a_page_with_an_example():
    page = (PACKAGE.parent / "docs/reference/index.md").read_text().split()
    inside = [
        f"{module}.{name}"
        for module, kind in (("datasets", "load_"), ("visualization", "plot_"))
        for name in vars(getattr(ksa, module))
        if name.startswith(kind)
    ]
    assert len(inside) == 7
    for name in [*(set(NAMES) - {"datasets", "visualization"}), *inside]:
        assert name in page, name
        assert "Example:" in resolve(name).__doc__, name
        assert ">>>" in resolve(name).__doc__, name
