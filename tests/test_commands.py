"""The commands that README names are the ones that CI runs."""

import os
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_readme_names_what_ci_runs():
    readme = (ROOT / "README.md").read_text("utf-8")
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command, target in (("make test", "test:"), ("make book", "book:")):
        assert command in readme
        assert f" {command}" in script
        assert f"\n{target}" in makefile


def test_every_workflow_runs_the_same_script():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"]
        steps = [step for job in jobs.values() for step in job["steps"]]
        assert [s["run"] for s in steps if "run" in s] == [".ci/run"], path.name
