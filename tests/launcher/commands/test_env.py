"""``uld-ds env``: what it says is so, says no secret, and gets said whatever is broken."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from launcher.cli import app
from launcher.drivers import bug_report
from launcher.drivers.import_probe import Imports, probe_imports
from uld_ds import __version__
from uld_ds.utils.environment import EXTRAS, LIBRARIES, code_revision
from uld_ds.utils.machine import this_machine

ROOT = Path(__file__).parents[3]
Env = Callable[..., str]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Env:
    """Run the verb, as if every library could be imported and torch saw nothing."""
    monkeypatch.setattr(bug_report, "probe_imports", lambda modules: Imports())

    def run(*words: str, **variables: str) -> str:
        done = CliRunner().invoke(app, ["env", *words], env=variables)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def lines(text: str) -> dict[str, str]:
    """Name and value of each line between the fences."""
    first, *inner, last = text.splitlines()
    assert (first, last) == ("```text", "```")
    return dict(line.split("  ", 1) for line in inner if line)


def test_versions_are_those_installed(env: Env) -> None:
    facts, said = json.loads(env("--json")), {name: value.strip() for name, value in lines(env()).items()}
    assert set(facts["libraries"]) == {*LIBRARIES, *EXTRAS}
    for name in LIBRARIES:
        assert facts["libraries"][name] == {"version": version(name), "extra": None, "problem": None}
        assert said[name] == version(name)
    assert said["peft"] == version("peft")
    assert said["uld-ds"] == f"{__version__}, code {code_revision()}"
    assert facts["uld_ds"] == {
        "version": __version__, "revision": code_revision().revision, "dirty": code_revision().dirty
    }  # fmt: skip
    assert said["python"] == f"{platform.python_version()} (CPython)"
    assert said["platform"] == platform.platform()


def test_what_is_not_installed_names_its_extra(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bug_report, "LIBRARIES", ("numpy", "no-such-library"))
    monkeypatch.setattr(bug_report, "EXTRAS", {"no-such-extra": "lora"})
    said = lines(env())
    assert said["no-such-library"].strip() == "not installed"
    assert said["no-such-extra"].strip() == "not installed (extra lora)"


def test_extras_are_those_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) == {*extras} - {"dev", "docs", "mlflow-server"}
    for name, extra in EXTRAS.items():
        assert any(text.startswith((name, f"ray[{'llm' if name == 'vllm' else name}]")) for text in extras[extra])


# ---- devices


def test_the_machine_is_this_one(env: Env) -> None:
    machine = json.loads(env("--json"))["machine"]
    assert machine["cores"] == os.cpu_count()
    assert 0 < machine["usable_cores"] <= len(os.sched_getaffinity(0))
    assert machine["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert f"{machine['memory_bytes'] / 2**30:.1f} GiB" in lines(env())["memory"]


def test_a_container_s_limits_count(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A processor\nflags\t\t: fpu avx512_bf16 sse\n")
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemFree:  1 kB\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("8388608\n")
    machine = this_machine(tmp_path, tmp_path)
    assert (machine.cpu, machine.cpu_bf16, machine.usable_cores) == ("A processor", True, 0.5)
    assert (machine.memory_bytes, machine.memory_limit_bytes) == (16 << 20, 8 << 20)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpuinfo").write_text("flags : fpu avx512f\n")
    machine = this_machine(tmp_path, tmp_path)
    assert (machine.cpu, machine.cpu_bf16) == (platform.machine(), False)
    assert (machine.usable_cores, machine.memory_limit_bytes) == (len(os.sched_getaffinity(0)), None)
    assert this_machine(tmp_path / "none", tmp_path / "none").memory_bytes is None


def test_torch_says_what_it_says_here() -> None:
    found = probe_imports(["torch"])
    assert found.problems == {}
    assert found.torch is not None
    assert found.torch["cuda"] == torch.version.cuda
    assert found.torch["cpu_kernels"] == torch.backends.cpu.get_cpu_capability()
    assert len(found.torch["gpus"]) == torch.cuda.device_count()


def test_gpus_are_a_line_each(env: Env, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = {"name": "A GPU", "memory_bytes": 80 << 30, "capability": "9.0", "bf16": True}
    old = {"name": "An old one", "memory_bytes": 16 << 30, "capability": "7.0", "bf16": False}
    said = {"cuda": "12.9", "hip": None, "nccl": "2.27.5", "cpu_kernels": "AVX2", "threads": 8, "gpus": [gpu, old]}
    monkeypatch.setattr(bug_report, "probe_imports", lambda modules: Imports(torch=said))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '580.1, A GPU'\necho '580.1, An old one'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    text = lines(env(PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert text["torch's GPU"].strip() == "CUDA 12.9, NCCL 2.27.5"
    assert text["gpu 0"].strip() == "A GPU, 80.0 GiB, capability 9.0, bf16"
    assert text["gpu 1"].strip() == "An old one, 16.0 GiB, capability 7.0, no bf16"
    assert text["nvidia-smi"].strip() == "driver 580.1: A GPU, An old one"


# ---- what is broken


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three libraries that cannot be imported, each in its own way, and one that talks."""
    for name, code in {
        "raises": "raise OSError('libnothing.so.3:\\n cannot open shared object file')",
        "dies": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "leaves": "import os; os._exit(3)",
        "talks": "print('a banner'); import os; os.write(1, b'another')",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
        (tmp_path / f"{name}-1.5.dist-info").mkdir()
        (tmp_path / f"{name}-1.5.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.5\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("broken")
def test_a_broken_library_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("raises", "dies", "numpy", "leaves", "talks")
    monkeypatch.setattr(bug_report, "LIBRARIES", names)
    monkeypatch.setattr(bug_report, "EXTRAS", {})
    done = CliRunner().invoke(app, ["env"])
    assert done.exit_code == 0, done.output
    said = {name: value.strip() for name, value in lines(done.output).items()}
    assert {name: said[name] for name in names} == {
        "raises": "1.5, BROKEN: OSError: libnothing.so.3: cannot open shared object file",
        "dies": "1.5, BROKEN: its import ends the process (SIGSEGV)",
        "numpy": version("numpy"),
        "leaves": "1.5, BROKEN: its import ends the process (exit status 3)",
        "talks": "1.5",
    }
    assert said["torch's GPU"] == "unknown: torch cannot be imported"
    assert "Traceback" not in done.output


def test_an_import_that_does_not_end_is_given_up(broken: Path) -> None:
    (broken / "hangs.py").write_text("import time; time.sleep(600)")
    found = probe_imports(["talks", "hangs", "raises"], seconds=8)
    assert found.problems["hangs"] == "its import has not ended after 8 s"
    assert found.problems["raises"].startswith("OSError: ")
    assert "talks" not in found.problems


def test_this_process_imports_none_of_them() -> None:
    code = f"import sys; from launcher.drivers import bug_report; print({set(LIBRARIES)!r} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_everything_installed_here_can_be_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "env", "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    assert {name: found["problem"] for name, found in facts["libraries"].items() if found["problem"]} == {}
    assert done.stdout.count("\n") == 1


# ---- what may be pasted where others read


def test_a_secret_does_not_appear(env: Env) -> None:
    secrets = {
        "HF_TOKEN": "correct-horse",
        "AWS_SECRET_ACCESS_KEY": "short",
        "MLFLOW_TRACKING_PASSWORD": "/staple",
        "MLFLOW_TRACKING_URI": "https://me:battery@tracking.example",
        "HF_HUB_USER_AGENT_ORIGIN": "correct-horse in passing",
    }
    for text in (env(**secrets), env("--json", **secrets)):
        for secret in ("correct-horse", "short", "staple", "battery"):
            assert secret not in text
    said = lines(env(**secrets))
    assert {name: said[name].strip() for name in secrets} == {
        "HF_TOKEN": "***",
        "AWS_SECRET_ACCESS_KEY": "***",
        "MLFLOW_TRACKING_PASSWORD": "***",
        "MLFLOW_TRACKING_URI": "https://***@tracking.example",
        "HF_HUB_USER_AGENT_ORIGIN": "*** in passing",
    }


def test_variables_are_those_that_a_run_reads(env: Env) -> None:
    given = {"NCCL_DEBUG": "INFO", "https_proxy": "http://p:1", "ULD_DS__RUN__NAME": "a", "PYTHONPATH": "x"}
    others = {"RAYMOND": "1", "EDITOR": "ed", "HFX": "1", "MY_RAY_ADDRESS": "1", "USERNAME": "somebody"}
    environment = json.loads(env("--json", **given, **others))["environment"]
    assert given.items() <= environment.items()
    assert environment.keys().isdisjoint(others)


def test_the_home_folder_and_the_fence(env: Env, tmp_path: Path) -> None:
    home = tmp_path / "somebody"
    where = {"HOME": str(home), "ULD_DS_CACHE": f"{home}/cache", "TMPDIR": f"{home}else", "HF_HOME": "a\n```\nb"}
    said = {name: value.strip() for name, value in lines(env(**where)).items()}
    assert said["ULD_DS_CACHE"] == "~/cache"
    assert said["cache"].startswith("~/cache (not there yet), ")
    assert said["TMPDIR"] == f"{home}else"
    assert said["HF_HOME"] == "a ''' b"
    assert json.loads(env("--json", **where))["cache"]["folder"] == "~/cache"
    home.joinpath("cache").mkdir(parents=True)
    assert lines(env(**where))["cache"].strip().startswith("~/cache, ")
