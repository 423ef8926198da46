"""Commands: data, methods, train, evaluate, compare, report.

sparsekit unlearning train --config mnist-class --method l1_sparse --out runs/l1
"""

from dataclasses import dataclass, fields
from typing import Any

from apps.common import verbs
from apps.common.config import PresetConfig, VerbConfig, parse
from apps.common.tables import percent, shown
from apps.unlearning import data, figure, service_cli, unlearner
from apps.unlearning.compare import compare, load_comparison
from apps.unlearning.config import PRESETS, Config
from apps.unlearning.evaluation import RELEARN, Ladder, ladder
from apps.unlearning.result import MODELS, Result, load_result
from apps.unlearning.shadows import train_shadows
from apps.unlearning.train import train


@dataclass(frozen=True)
class DataConfig(PresetConfig):
    """Loads a data set and prints what would be forgotten.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of yours: an .npz with arrays x
            and y, a .csv or .parquet table with a column y, a folder of class folders.
        data_dir: where cifar10 or your file is.
        forget: as in `train`.
        seed: of the split and the forget set.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    forget: str = "random:0.1"
    seed: int = 0


def main(argv: list[str] | None = None) -> int:
    """Forgets training data of a model, and compares with retraining.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return verbs.run(argv, "unlearning", VERBS, PRESETS, methods=unlearner.discover)


@dataclass(frozen=True)
class EvaluateConfig(verbs.FinishedConfig):
    """Attacks a finished run: the unlearned, the original and the retrained model.

    Args:
        references: retrained models that the attack is calibrated by.
        shadows: models of each kind to train for attacks on distributions of models,
            U-LiRA and the forgetting score; at least 8, and 0 leaves them out.
    """

    references: int = 2
    shadows: int = 0


@dataclass(frozen=True)
class CompareConfig(Config):
    """Runs methods x pruners x seeds and prints gaps to retraining.

    An option goes to every method that has a field of that name; write METHOD.FIELD for
    one method only, as --options finetune.lr=0.01 l1_sparse.lr=0.02.

    Args:
        methods: names of methods.
        pruners: dense, and what it is compared with.
        seeds: how many seeds, from `seed` on.
    """

    unused = verbs.GOES_ON | {"method": "give --methods", "pruner": "give --pruners"}

    methods: tuple[str, ...] = ("finetune", "l1_sparse")
    pruners: tuple[str, ...] = ("dense", "omp")
    seeds: int = 5

    def __post_init__(self) -> None:
        """Options belong to several methods: checked for each run."""


def data_command(argv: list[str]) -> None:
    """Print a data set's parts and a forget set.

    sparsekit unlearning data --dataset mnist5k --forget class:3
    """
    config = parse(DataConfig, argv, presets=PRESETS, beside=Config)
    loaded = data.load(config.dataset, config.forget, config.seed, config.data_dir)
    facts = {"dataset": loaded.name, "classes": loaded.classes, "forget": config.forget}
    text = [f"{loaded.name}: {loaded.classes} classes; forget {config.forget}"]
    parts = {}
    for name in ("forgotten", "retained", "held_out", "fresh"):
        part = getattr(loaded, name)
        counts = part.y.bincount(minlength=loaded.classes).tolist()
        parts[name] = {"records": len(part), "a_class": counts}
        text.append(f"  {name:10}{len(part):7}  a class: {' '.join(map(str, counts))}")
    verbs.tell(facts | {"parts": parts}, *text)


def methods_command(argv: list[str]) -> None:
    """List the methods and their settings.

    sparsekit unlearning methods
    """
    parse(VerbConfig, argv)
    rows, text = [], []
    for name, cls in unlearner.discover().items():
        what = (cls.__doc__ or "").strip().splitlines()[0]
        options = {f.name: f.default for f in fields(cls)}
        rows.append(
            {"name": name, "what": what, "exact": cls.exact, "options": options}
        )
        settings = ", ".join(f"{field}={value}" for field, value in options.items())
        exact = " (exact)" if cls.exact else ""
        text += [f"{name:16}{what}{exact}", f"{'':16}{settings or 'no settings'}"]
    verbs.tell(rows, *text)


def train_command(argv: list[str]) -> None:
    """Prune and train, unlearn, retrain, and print what was forgotten.

    sparsekit unlearning train --config mnist-class --method l1_sparse --out runs/l1
    sparsekit unlearning train --resume --out runs/l1
    """
    result = train(verbs.resumable(Config, argv, PRESETS))
    facts = {"exact": result.exact, "mask": result.provenance if result.masks else None}
    verbs.tell(verbs.measured(result) | facts, *lines(result))


def evaluate_command(argv: list[str]) -> None:
    """Attack a finished run, by the strongest attacks that it allows.

    sparsekit unlearning evaluate --run runs/l1 --references 2
    """
    config = parse(EvaluateConfig, argv)
    found = ladder(verbs.required(config.run, "run"), config.references)
    content, text = attacked(found)
    if config.shadows:
        many = train_shadows(load_result(config.run).config, config.shadows)
        auc, null_auc = many.ulira().auc, many.null_ulira().auc
        score, null = many.forgetting_score(), many.null_score()
        text += [
            f"U-LiRA, AUC: {shown(auc)}, null {shown(null_auc)}",
            f"forgetting score, {config.shadows} models: {score:.3f}, null {null:.3f}",
        ]
        content["ulira"] = {"auc": auc.plain(), "null": null_auc.plain()}
        content["forgetting_score"] = {"score": score, "null": null}
    verbs.tell(content, *text)


def attacked(found: Ladder) -> tuple[dict[str, Any], list[str]]:
    """What the attacks found: as JSON has it, and as lines."""
    text = [f"{'':12}{'RMIA, AUC':24}{'TPR at 1 % FPR, %':24}hardest tenth, AUC"]
    models = {}
    for name in MODELS:
        whole, hard = found.rmia[name], found.hard[name]
        rate = "-" if whole.tpr is None else percent(whole.tpr)
        text.append(f"{name:12}{shown(whole.auc):24}{rate:24}{shown(hard.auc)}")
        models[name] = {
            "auc": whole.auc.plain(), "hardest_auc": hard.auc.plain(),
            "tpr_at_1_percent": None if whole.tpr is None else whole.tpr.plain(),
        }  # fmt: skip
    for title, values in (
        ("confusion error, %", found.confusion),
        ("backdoor success, %", found.backdoor),
    ):
        if values is not None:
            cells = [f"{name} {100 * values[name]:.1f}" for name in MODELS]
            text.append(f"{title}: {', '.join(cells)}")
    said = {
        name: f"over {RELEARN}" if taken is None else str(taken)
        for name, taken in found.relearn.items()
    }
    text.append(
        f"relearning, steps to a loss of {found.below:.2f}: "
        + ", ".join(f"{name} {said[name]}" for name in MODELS)
    )
    null = found.rmia["reference"]
    n, m = len(null.members), len(null.others)
    text.append(
        f"{n} forgotten against {m} fresh records: a distance of "
        f"{null.detectable:.3f} from the null would have shown"
    )
    content = {
        "models": models, "confusion": found.confusion, "backdoor": found.backdoor,
        "relearn_steps": found.relearn, "relearned_below": found.below,
        "forgotten": n, "fresh": m, "detectable": null.detectable,
    }  # fmt: skip
    return content, text


def compare_command(argv: list[str]) -> None:
    """Run methods x pruners x seeds; print gaps to retraining.

    sparsekit unlearning compare --config mnist-class --seeds 5 --out runs/compare
    """
    config = parse(CompareConfig, argv, presets=PRESETS)
    configs = {
        f"{method} {pruner}": one
        for pruner in config.pruners
        for method, one in per_method(config, pruner).items()
    }
    seeds = range(config.seed, config.seed + config.seeds)
    comparison = compare(configs, seeds, out=config.out)
    verbs.tell(comparison.content(), comparison.table())


def per_method(config: CompareConfig, pruner: str) -> dict[str, Config]:
    """{method: config}, each with the options that are its own."""
    known = {
        method: {f.name for f in fields(type(unlearner.build(method)))}
        for method in config.methods
    }
    return {
        method: verbs.narrowed(
            config, Config, method=method, options=own, pruner=pruner
        )
        for method, own in verbs.divided(config.options, known).items()
    }


def report_command(argv: list[str]) -> int | None:
    """Write a comparison's table and figure (--run), or the audit page (--folder).

    sparsekit unlearning report --run runs/compare
    sparsekit unlearning report --folder service --out report.html
    """
    if any(word.partition("=")[0] == "--folder" for word in argv):
        return service_cli.VERBS["report"](argv)
    asked = {word.partition("=")[0] for word in argv}
    if not asked & {"--run", "--help", "-h"}:
        raise ValueError("give --run, a comparison, or --folder, of the service")
    return verbs.report(argv, load_comparison, figure.draw)


def lines(result: Result) -> list[str]:
    """The three models side by side, then costs."""
    text = [f"{'':10}  {'unlearned':22}{'retrained':22}{'original':22}gap"]
    for name in ("UA", "MIA", "RA", "TA"):
        cells = [
            percent(result.metrics[f"{prefix}{name}"])
            for prefix in ("", "reference ", "original ")
        ]
        gap = 100 * result.value(f"{name} gap")
        text.append(f"{name:10}  {''.join(f'{cell:22}' for cell in cells)}{gap:+.1f}")
    return [
        *text,
        f"{'mean gap':10}  {100 * result.value('gap'):.2f}",
        f"{'run time':10}  {100 * result.value('run time'):.1f} % of retraining",
        f"{'mask':10}  {result.provenance if result.masks else 'none'}",
        f"{'exact':10}  {'yes' if result.exact else 'no'}",
        *verbs.cost_lines(result.cost),
    ]


VERBS = {
    "data": data_command,
    "methods": methods_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    **service_cli.VERBS,
    "report": report_command,  # of a comparison, or of the service
}
