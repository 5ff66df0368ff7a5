"""Chat templates of real models, read as files from the packages that ship them; none of them is imported."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.tokenizers_zoo import package_dir
from tests.helpers.toy_tokenizers import SPECIAL, toy

LLAMA_CPP = "llama-cpp-python==0.3.36"
# Control tokens as templates write them: <|im_end|>, <｜Assistant｜>, [INST], <end_of_turn>, <turn|>.
_CONTROL = re.compile(
    r"<[|｜][^<>\s'\"{}]{1,40}[|｜]?>|<[a-z_]{3,20}\|>|</?s>|\[/?[A-Z][A-Z_]{2,20}\]|<(?:start|end)_of_turn>"
)


@cache
def stock_templates() -> dict[str, str]:
    """The templates by package and name; of two with the same text one."""
    folders = {
        "trl": package_dir("trl", "trl==1.16.0") / "chat_templates",
        "axolotl": package_dir("axolotl", "axolotl==0.19.0") / "utils" / "chat_templates" / "templates",
    }
    found: dict[str, str] = {}
    for package, folder in folders.items():
        found |= templates_in(folder, package)
    return {name: text for text, name in {text: name for name, text in found.items()}.items()}


def templates_in(folder: Path, package: str) -> dict[str, str]:
    files = sorted(folder.glob("*.jinja"))
    assert files, f"no templates in {folder}"
    return {f"{package}/{file.stem}": file.read_text(encoding="utf-8") for file in files}


def tokenizer_with(template: str) -> Any:
    """A byte tokenizer with a chat template, to which what the template writes in marks is a special token."""
    tokenizer = toy(bos=True, chat_template=template)
    marks = sorted(set(_CONTROL.findall(template)) - set(SPECIAL))
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def llama_cpp_templates(folder: Path) -> Path:
    """Download the source package that holds llama.cpp's templates, and return the folder of these."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            str(folder),
            LLAMA_CPP,
        ],
        check=True,
    )
    (package,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(package) as files:
        wanted = [file for file in files if file.name.endswith(".jinja")]
        files.extractall(folder, wanted, filter="data")
    return next(folder.rglob("vendor/llama.cpp/models/templates"))
