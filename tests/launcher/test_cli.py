"""The command line: exit status, and one line for each thing a user can get wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import cli
from uld_ds import __version__
from uld_ds.errors import RunError
from uld_ds.recipe import load_recipe

Tree = dict[str, Any]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uld-ds", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run_main


@pytest.fixture
def file(tmp_path: Path, tiny_recipe: Tree, tracking_uri: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe, "tracking": {"uri": tracking_uri}}))
    return path


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


# ---- what works


def test_version_and_help(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"uld-ds {__version__}\n", "")
    for verb in ((), ("train",), ("recipes",), ("recipes", "list"), ("recipes", "copy")):
        status, out, _ = run(*verb, "--help")
        assert status == 0
        assert "Usage: " in out


def test_dry_run_prints_the_resolved_recipe(run: Callable[..., tuple[int, str, str]], file: Path) -> None:
    status, out, err = run("train", str(file), "--set", "training.steps=7", "--dry-run")
    assert (status, err) == (0, "")
    (resolved := file.parent / "resolved.yaml").write_text(out)
    assert load_recipe(resolved, environment={}) == load_recipe(file, ["training.steps=7"])
    assert not (file.parent / "runs").exists()
    status, out, err = run("train", str(file), "--set", "training.steps=7", "--dry-run", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == load_recipe(file, ["training.steps=7"]).model_dump(mode="json")
    assert out.count("\n") == 1


def test_python_m_launcher_is_the_same(file: Path) -> None:
    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launcher", "train", str(file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = python("--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["run"]["name"] == "tiny"
    done = python("--set", "training.stps=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: training.stps: unknown key (value 3); did you mean training.steps?\n"


# ---- what a user gets wrong


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "training.stps=3"], "training.stps: unknown key (value 3); did you mean training.steps?"),
        (["--set", "training.steps"], "--set: 'training.steps' is not KEY=VALUE; write e.g. --set training.steps=100"),
        (
            ["--set", "training.batch_size=3"],
            "recipe: training.batch_size 3 is not a multiple of training.micro_batch_size 2 x cluster.workers 2 = 4; "
            "change one of the values named",
        ),
        (
            ["--set", "run.name='[/red] :100: x'"],
            "run.name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$' (value '[/red] :100: x'); "
            "give a value of that kind",
        ),
    ],
)
def test_a_bad_recipe_is_one_line(
    run: Callable[..., tuple[int, str, str]], file: Path, arguments: list[str], expected: str
) -> None:
    assert run("train", str(file), *arguments) == (2, "", f"error: {expected}\n")


def test_no_such_recipe(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("train", "none.yaml") == (
        2,
        "",
        "error: recipe: no file 'none.yaml'; give the path of a recipe's YAML file\n",
    )
    assert run("recipes", "copy", "none")[0] == 2


def test_a_bad_option(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("train", "--nonsense")
    assert (status, out) == (2, "")
    assert "No such option: --nonsense" in err
    assert "Traceback" not in err


BAD_INPUTS: dict[str, tuple[list[str], str]] = {
    "model path": (["teacher.model=./nowhere"], "teacher.model: no folder './nowhere'; correct the path, or give a h"),
    "student path": (["student.model=/no/where"], "student.model: no folder '/no/where'; correct the path, or give "),
    "hub id": (["teacher.model=no-org/no-model"], "teacher.model: 'no-org/no-model' is no folder, and the hub does "),
    "max_length": (["student.max_length=9999"], "student.max_length: 9999 is more than the 512 positions of '"),
    "column": (["data.columns.answer=reply"], "data.columns.answer: data.train has no column 'reply'; set it to one "),
    "data path": (["data.train.path=none.jsonl"], "data.train.path: no file matches 'none.jsonl'; correct the path "),
    "held-out path": (["data.eval.path=none.jsonl"], "data.eval.path: no file matches 'none.jsonl'; correct the path"),
    "empty answer": (["data.train.path=empty.jsonl"], "data.train: row 1: the answer is empty (2 unusable of 3); rep"),
    "no usable row": (
        ["data.train.path=unusable.jsonl", "data.on_bad_example=skip"],
        "data.train: none of 2 rows is usable: the answer is empty; repair the data",
    ),
    "template": (["student.prompt_template=x"], "student: prompt_template 'x' is neither 'chat' nor contains {prompt}"),
    "deepspeed": (["teacher.deepspeed=none.json"], "teacher.deepspeed: no file 'none.json'; give a path or one of "),
    "storage": (["run.storage=empty.jsonl"], "run.storage: cannot write to '"),
    "disk": (["training.keep_checkpoints=99999999"], "run.storage: '"),
    "tracking": (["tracking.uri=http://127.0.0.1:9"], "tracking.uri: MLflow does not answer at 'http://127.0.0.1:9' ("),
}


@pytest.fixture
def bad_files(tmp_path: Path) -> None:
    empty = '{"prompt": "q", "answer": ""}\n'
    (tmp_path / "empty.jsonl").write_text('{"prompt": "q", "answer": "a"}\n' + empty * 2)
    (tmp_path / "unusable.jsonl").write_text(empty * 2)


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_input_is_one_line_and_registers_nothing(
    run: Callable[..., tuple[int, str, str]], file: Path, what: str
) -> None:
    settings, expected = BAD_INPUTS[what]
    status, out, err = run("train", str(file), *(word for setting in settings for word in ("--set", setting)))
    # Notes on what is going on may come first.
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == err.splitlines()[-1:]
    assert errors[0].startswith(f"error: {expected}")
    assert "Traceback" not in err
    assert (status, out) == (2, "")
    assert not (file.parent / "runs" / "tiny" / "mlflow_run_id").exists()


def test_a_mistake_can_be_corrected_under_the_same_name(run: Callable[..., tuple[int, str, str]], file: Path) -> None:
    assert run("train", str(file), "--set", "teacher.model=./nowhere")[0] == 2
    # The same error again, not one about the name of the run.
    status, _, err = run("train", str(file), "--set", "teacher.model=./else")
    assert (status, err.splitlines()[-1].split(";")[0]) == (2, "error: teacher.model: no folder './else'")


# ---- what goes wrong


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RunError("run 'a' failed:\n  killed"), 1, "error: run 'a' failed: killed\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk"),
            1,
            "error: /full/disk: No space left on device; make room there, or name another folder\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "{cache}/digests"),
            1,
            "error: {cache}/digests: No such file or directory; set ULD_DS_CACHE to a folder that can be written\n",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/a/file/x"),
            1,
            "error: /a/file/x: Not a directory; make room there, or name another folder\n",
        ),
    ],
)
def test_a_failed_run_is_one_line_and_status_1(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, line: str
) -> None:
    cache = os.environ["ULD_DS_CACHE"]
    if isinstance(error, OSError):
        error.filename = error.filename.replace("{cache}", cache)

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert run() == (status, "", line.replace("{cache}", cache))


def test_a_mistake_of_ours_keeps_its_traceback(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(FileNotFoundError):
        run()
