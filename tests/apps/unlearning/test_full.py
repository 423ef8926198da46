"""The GPU run, in miniature, on a CPU."""

import copy
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.unlearning import data, full
from apps.unlearning.config import Config
from apps.unlearning.full_choices import choices, distinct, prepared
from apps.unlearning.full_plan import Task, plan, work
from apps.unlearning.full_settings import CANDIDATES, COMMON, FINER, base
from apps.unlearning.full_worker import Worker
from apps.unlearning.pruning import Pruner, train_original
from apps.unlearning.train import builder, train
from apps.unlearning.unlearner import build

TASKS = plan(search=[100], seeds=[0, 1], control=[1], timed=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    generator = np.random.default_rng(7)
    patterns = generator.normal(size=(4, 1, 8, 8))
    y = np.arange(500) % 4
    x = patterns[y] + generator.normal(size=(500, 1, 8, 8))
    path = tmp_path_factory.mktemp("data") / "four.npz"
    np.savez(path, x=x.astype(np.float32), y=y)
    return Config(
        dataset=str(path), model="cnn", width=3, prunable="conv", sparsity=0.5,
        pruner="omp", epochs=3, rewind=1, batch=17, lr=0.02,
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(tmp_path_factory, config) -> Worker:
    worker = Worker(tmp_path_factory.mktemp("work"), config, "search-100")
    tasks = plan(search=[100], seeds=[0], control=[0], timed=True)
    work(worker.folder, tasks, "search-100", worker.run)
    assert not list(worker.folder.glob("*.failed"))
    return worker


def test_each_task_is_run_once_and_after_what_it_needs(tmp_path):
    done, lock = [], threading.Lock()

    def run(task: Task) -> dict:
        assert all(
            (tmp_path / f"{n}.json").exists() for n in task.needs("search-100", True)
        )
        with lock:
            done.append(task.name)
        return {}

    threads = [
        threading.Thread(target=work, args=(tmp_path, TASKS, "search-100", run))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(task.name for task in TASKS)


def test_a_task_that_fails_stops_those_that_need_it_and_no_others(tmp_path, capsys):
    def run(task: Task) -> dict:
        if task.name == "omp-1":
            raise RuntimeError("out of memory")
        return {}

    work(tmp_path, TASKS, "search-100", run)
    assert "out of memory" in (tmp_path / "omp-1.failed").read_text()
    assert "omp-1 failed" in capsys.readouterr().out
    missing = {t.name for t in TASKS} - {p.stem for p in tmp_path.glob("*.json")}
    assert missing == {
        "omp-1", "unlearn-1-class-omp", "unlearn-1-random-omp",
        "usable-1-class-omp", "usable-1-random-omp",
        "published-1-class-omp", "published-1-random-omp",
    }  # fmt: skip


def test_pruning_in_two_tasks_is_pruning_in_one(worker, config):
    loaded = data.load(config.dataset, "class:3", 0)
    pruner = Pruner("omp", 0.5, 1, prunable="conv")
    build_model = builder(config, loaded)
    expected = train_original(pruner, loaded.train, build_model, config.recipe, seed=0)
    found = worker.load("omp-0")
    assert found["masks"].keys() == expected.masks.keys()
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found["model"][name], value)


def test_a_row_is_the_experiment_of_the_app(worker, config):
    rows = json.loads((worker.folder / "unlearn-0-random-omp.json").read_text())["rows"]
    (row,) = [
        r for r in rows if r["method"] == "finetune" and "smallest" in r["choice"]
    ]
    asked = replace(config, forget="random:0.1", options=row["options"])
    expected = train(asked)
    assert row["mask"] == expected.provenance == "with-forget-data"
    for prefix, model in (("", "unlearned"), ("reference ", "reference")):
        for name in ("UA", "RA", "TA"):
            assert row[model][name] == pytest.approx(expected.value(prefix + name))
        # Confidences are rounded there.
        assert row[model]["MIA"] == pytest.approx(
            expected.value(f"{prefix}MIA"), abs=0.05
        )


def test_every_candidate_is_tried_and_two_are_chosen(worker):
    searched = json.loads((worker.folder / "search-100-class-dense.json").read_text())
    for method, options in CANDIDATES.items():
        tried = [r for r in searched["candidates"] if r["method"] == method]
        assert [r["options"] for r in tried] == options
        assert np.isfinite([[r[name] for name in full.NAMES] for r in tried]).all()
        smallest = searched["chosen"][method]["smallest"]
        gaps = {str(r["options"]): r["gap"] for r in tried}
        assert gaps[str(smallest)] == min(gaps.values())


@pytest.mark.parametrize("method", ["fisher", "influence"])
def test_what_candidates_share_changes_nothing(worker, config, method):
    config = replace(config, forget="class:3")
    loaded, model, masks, _ = worker.trained(Task("unlearn", 0, "class", "omp"), config)
    problem = worker.problem(config, loaded, model, masks)
    run = prepared(method, problem)
    for options in CANDIDATES[method][:3]:
        asked = build(method, COMMON[method] | options)
        found = run(asked, replace(problem, model=copy.deepcopy(model)))
        expected = asked.run(replace(problem, model=copy.deepcopy(model)))
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_second_choice_keeps_the_network_usable():
    rows = [
        {"options": {"lr": 1}, "gap": 0.1, "RA": 0.5},
        {"options": {"lr": 2}, "gap": 0.3, "RA": 0.96},
        {"options": {"lr": 3}, "gap": 0.2, "RA": 0.93},
    ]
    found = choices(rows, accuracy=0.99)
    assert found == {"smallest": {"lr": 1}, "usable": {"lr": 2}}
    assert choices(rows[:1], accuracy=0.99)["usable"] == {"lr": 1}


def row(seed, forget, pruner, method, ua):
    same = dict.fromkeys(full.NAMES, 0.0)
    return {
        "seed": seed, "forget": forget, "pruner": pruner, "method": method,
        "choice": ["smallest"], "reference": same, "unlearned": same | {"UA": ua},
    }  # fmt: skip


def test_what_decides_the_claims(tmp_path):
    rows = [
        row(seed, forget, pruner, method, ua)
        for seed in range(3)
        for forget in ("class", "random")
        for pruner, ua in (("dense", 0.8), ("omp", 0.4 if forget == "class" else 1.0))
        for method in full.FOUR
    ]
    rows += [row(seed, "class", "dense", "l1_sparse", 0.9) for seed in range(2)]
    timed = {"retrain_epoch": [1.0, 3.0], "finetune": [2.0], "l1_sparse": [4.0]}
    merged = {"rows": rows, "settings": {"epochs": 20}, "timing": [timed]}
    found = full.measured(merged)
    # A gap is a quarter of UA here.
    for name, value in {
        "cifar10_class": 0.1, "cifar10_random": -0.05, "cifar10": 0.025,
    }.items():  # fmt: skip
        metric = f"dense_minus_sparse_gap:{name}"
        assert found[metric] == {seed: pytest.approx(value) for seed in range(3)}
    assert found["l1_minus_finetune_ua:cifar10_class"] == {
        seed: pytest.approx(0.1) for seed in range(2)
    }
    assert found["run_time_share:cifar10"] == {0: pytest.approx(4 / 40)}
    merged["provenance"] = {}
    path = full.record(merged, tmp_path)
    stored = json.loads(path.read_text())
    assert "l1_minus_finetune_ua:cifar10_class" not in path.read_text()
    assert stored["profile"] == "full"


def test_a_finer_grid_is_a_third_choice_beside_the_earlier_two(worker, tmp_path):
    folder = tmp_path / "work"
    found = {
        name: json.loads((worker.folder / f"search-100-{name}.json").read_text())
        for name in ("class-dense", "class-omp", "random-dense", "random-omp")
    }
    earlier = [part | {"kind": "search"} for part in found.values()]
    earlier += [part | {"kind": "refine", "seed": 0} for part in found.values()]
    runs = tmp_path / "runs.json"
    runs.write_text(json.dumps({"search": earlier}))
    asked = f"run --chosen {runs} --out {tmp_path} --workers 0 --finer 100 --seeds 3"
    full.main([*asked.split(), "--skip", "usable", "published"])
    names = sorted(path.stem for path in folder.glob("*.json"))
    # What this run does not search for itself is the earlier run's.
    assert names == sorted(
        [f"{place}-{name}" for place in ("refine-0", "search-100") for name in found]
        + ["finer-100-random-dense", "finer-100-random-omp"]
    )
    config = replace(worker.config, seed=100)
    for name in ("dense-100.pt", "retrain-100-class-dense.pt"):
        (folder / name).write_bytes((worker.folder / name).read_bytes())
    finer = Worker(folder, config, "finer-100", "refine-0")
    rows = finer.run(Task("finer", 100, "class", "dense"))
    assert [r["options"] for r in rows["candidates"]] == FINER["gradient_ascent"]
    best = min(rows["candidates"], key=lambda r: r["gap"])["options"]
    chosen = found["class-dense"]["chosen"]
    chosen["gradient_ascent"]["finer"] = best
    assert rows["chosen"] == chosen
    asked = distinct(chosen["gradient_ascent"])
    assert sorted(n for names, _ in asked for n in names) == sorted(
        ["smallest", "usable", "finer"]
    )


def test_the_gap_by_the_finer_grid_takes_other_methods_as_they_were():
    rows = [
        row(0, "class", pruner, method, ua)
        for pruner, ua in (("dense", 0.8), ("omp", 0.4))
        for method in full.FOUR
    ]
    assert full.gaps_closed(rows, "class", "finer") == {}
    finer = row(0, "class", "omp", "gradient_ascent", 0.0) | {"choice": ["finer"]}
    rows += [finer, finer | {"pruner": "dense"}]
    found = full.gaps_closed(rows, "class", "finer")
    assert found == {0: pytest.approx(3 * 0.1 / 4)}


def test_the_network_is_that_of_the_paper_in_a_fifth_of_its_epochs():
    config = base()
    assert (config.model, config.width, config.batch) == ("resnet18", 64, 256)
    assert (config.epochs, config.rewind, config.prunable) == (36, 2, "conv")
