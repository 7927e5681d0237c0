"""What a process imports before it begins, which each driver, worker, reading task and replica pays again."""

import json
import subprocess
import sys

NEVER = ("matplotlib", "mlflow", "transformers", "sklearn")
# One process imports them in this order, and must hold none of the modules at their right (nor those of NEVER) by then.
STEPS = (
    ("jobs.train", ("ray", "pandas", "scipy", "faiss", "fastapi")),
    ("rayrec.families.ranker.experiment", ("ray", "pandas", "scipy", "faiss", "fastapi")),
    ("rayrec.families.language_model.experiment", ("ray", "pandas", "scipy", "faiss", "fastapi")),
    ("rayrec.families.retriever.experiment", ("ray", "pandas", "scipy", "fastapi")),
    ("rayrec.families.content.experiment", ("ray", "pandas", "scipy", "fastapi")),
    ("serve_apps.ranker.application", ("ray.data", "ray.train", "ray.tune")),
    ("serve_apps.content.application", ("ray.data", "ray.train", "ray.tune")),
    ("serve_apps.retriever.application", ("ray.data", "ray.train", "ray.tune")),
    ("serve_apps.cascade.application", ("ray.data", "ray.train", "ray.tune")),
    ("rayrec.runs.ray_train", ("ray.tune",)),
)


def test_neither_a_run_nor_its_workers_nor_a_replica_imports_what_it_may_never_use() -> None:
    assert not imported(STEPS)


def test_a_task_that_reads_a_log_imports_neither_torch_nor_training() -> None:
    assert not imported((("rayrec.data.log.ray_reader", ("torch", "ray.train", "ray.serve", "scipy")),))


def imported(steps: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, list[str]]:
    """By step, what a new process holds after it and should not."""
    code = (
        f"import importlib, json, sys; found = {{}}\nfor step, avoided in {steps!r}:\n    importlib.import_module(step)\n"
        f"    found[step] = [name for name in (*{NEVER!r}, *avoided) if name in sys.modules]\nprint(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {step: names for step, names in json.loads(done.stdout).items() if names}


def test_few_searches_for_cycles_are_made_while_all_is_imported_and_as_many_as_a_user_chose() -> None:
    def after(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert after("import gc, rayrec; print(gc.get_threshold()[0] >= 10_000)") == "True"
    assert after("import gc; gc.set_threshold(900, 8, 8); import rayrec; print(gc.get_threshold())") == "(900, 8, 8)"


def test_a_job_that_ends_is_not_searched_for_cycles_any_more() -> None:
    code = (
        "import gc\nfrom rayrec.errors import told\n"
        "def count(phase, found):\n    phase == 'stop' and print(len(gc.get_objects()), flush=True)\n"
        "with told():\n    gc.callbacks.append(count)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(int(objects) < 1000 for objects in done.stdout.split())
    whole = subprocess.run(
        [sys.executable, "-c", "import gc; print(len(gc.get_objects()))"], capture_output=True, text=True, check=True
    )
    assert int(whole.stdout) > 1000
