"""Command: augment.

sparsekit recsys augment --config llmrec-ml100k --out runs/augmented
sparsekit recsys augment --chooser ask --endpoint.url https://HOST/v1 \\
    --endpoint.model NAME --dry-run
"""

import sys
from typing import Any

from apps.common.config import parse
from apps.common.verbs import Verbs, required, tell
from apps.recsys.augment import FILE, AugmentConfig, augment, rehearse
from apps.recsys.config import PRESETS, Config
from apps.recsys.language.asking import OverBudget
from apps.recsys.language.interface import EndpointError


def augment_command(argv: list[str]) -> None:
    """Make triplets and features for llmrec from titles, by models on this machine.

    sparsekit recsys augment --config llmrec-ml100k --chooser genres --out runs/a
    """
    config = parse(AugmentConfig, argv, presets=PRESETS, beside=Config)
    out = None if config.dry_run else required(config.out, "out")
    try:
        leaves = ""
        if config.dry_run or config.endpoint.url:  # what leaves is listed first
            leaves = rehearse(config)
        if out is None:
            tell({"leaves": leaves}, leaves)
            return
        if leaves:
            print(leaves, file=sys.stderr, flush=True)
        _, report = augment(config)
    except (EndpointError, OverBudget) as error:
        raise ValueError(str(error)) from error
    except ImportError as error:
        raise ValueError(
            f"{error}: language models need pip install 'sparsekit[language]'"
        ) from error
    content = {"file": out / FILE, "report": report}
    tell(content, *lines(report), f"wrote {out / FILE}")


def lines(report: dict[str, Any], indent: str = "") -> list[str]:
    """A report as indented lines, without the settings and without zeros."""
    found = []
    for name, value in report.items():
        if name == "settings" or value in (0, {}, None):
            continue
        if isinstance(value, dict):
            found += [f"{indent}{name}", *lines(value, f"{indent}  ")]
        else:
            shown = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
            found.append(f"{indent}{name:20}{shown}")
    return found


AUGMENT_VERBS: Verbs = {"augment": augment_command}
