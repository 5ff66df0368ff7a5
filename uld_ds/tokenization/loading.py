"""Loading of tokenizers from a folder, a tokenizer.json, a GGUF file, an installed package or the hub.

transformers (seconds) is imported only once a path is known to exist, so that a wrong one is told at once.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uld_ds.errors import UserError, one_line
from uld_ds.tokenization.notices import say_notice
from uld_ds.tokenization.sentencepiece_files import SENTENCEPIECE_FILES
from uld_ds.utils.cache import PACKAGE, build_once, converted_gguf, package_folder
from uld_ds.utils.files import in_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Seconds in which the hub must answer one question before its local cache is all there is. Left to itself,
# transformers asks a hub that does not answer a dozen times, for minutes.
HUB_PATIENCE = 10.0

# What vocabularies are kept in, besides the names that a tokenizer's own class gives.
_VOCABULARY_FILES = {"tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", *SENTENCEPIECE_FILES}
# What transformers notes in tokenizer_config.json about the loading, not about the tokenizer.
_WHERE_A_TOKENIZER_WAS = {"is_local", "local_files_only", "name_or_path"}
_FIX = "name a folder or hub id that has one"


def load_tokenizer(
    place: str,
    revision: str | None,
    key: str,
    *,
    local_files_only: bool = False,
    code: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or hub id.

    Args:
        place: the directory or hub id.
        revision: a hub id's branch, tag or commit.
        key: the key or option that the user gave ``place`` with, for messages.
        local_files_only: take what the hub's local cache has.
        code: options from ``code_options``; by default no code that comes with a model is run.

    Raises:
        UserError: there is no tokenizer, or none with a vocabulary.
    """
    # The recipe's models take a quarter of a second, which every command would wait for.
    from uld_ds.recipe.models import NO_CODE
    from uld_ds.tokenization.faithful import as_the_files_say

    options = {"revision": revision, "local_files_only": local_files_only, **(NO_CODE if code is None else code)}
    try:
        tokenizer = as_the_files_say(place, options, lambda name: _found(place, revision, name))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(key, f"no tokenizer at {place!r} ({_reason(place, revision, error)})", _FIX) from error
    # Without vocabulary files transformers makes some classes up from nothing, with no tokens in them.
    needed = _vocabulary_files(tokenizer)
    if needed and not any(_found(place, revision, name) for name in needed):
        raise UserError(key, f"no tokenizer at {place!r} (none of {', '.join(sorted(needed))})", _FIX)
    say_notice(Path(place))
    return tokenizer


def open_tokenizer(place: str, key: str) -> PreTrainedTokenizerBase:
    """Open the tokenizer that a user names on the command line.

    Args:
        place: a folder with tokenizer files or one GGUF file; a ``tokenizer.json`` or GGUF file; a hub id;
            or ``package:NAME`` for an installed package, ``package:NAME/PATH`` for what is in it.
        key: the key or option that the user gave ``place`` with, for messages.

    Raises:
        UserError: there is no such tokenizer, or it cannot be read.
    """
    path = local_path(place, key)
    if path is None:
        return _hub_tokenizer(place, key)
    if path.is_file():
        return _gguf_tokenizer(path, key) if path.suffix == ".gguf" else _single_file(path, place, key)
    return load_tokenizer(str(path), None, key)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Compute the sha256 hex digest of what decides how text becomes ids, the chat template included."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        digest = hashlib.sha256()
        for file in sorted(item for item in Path(folder).rglob("*") if item.is_file()):
            if file.name == "tokenizer_config.json":
                settings = json.loads(file.read_text(encoding="utf-8"))
                content = json.dumps({k: v for k, v in settings.items() if k not in _WHERE_A_TOKENIZER_WAS}).encode()
            else:
                content = file.read_bytes()
            digest.update(f"{file.relative_to(folder)}:{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


@contextmanager
def without_torch() -> Iterator[None]:
    """Let transformers start without PyTorch, whose import takes three of its four seconds.

    Transformers imports PyTorch wherever there is one. Tokenizers need none of it, models cannot be loaded in this
    process afterwards: for a command that ends with its answer. Does nothing if either is imported already.
    """
    if {"torch", "transformers"} & sys.modules.keys():
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # Python's own way to say that a module cannot be imported
    try:
        yield
    finally:
        del modules["torch"]


def is_read(path: Path) -> bool:
    """Tell whether a tokenizer can be read without PyTorch: no GGUF file, or one that is converted in the cache."""
    return path.suffix != ".gguf" or any(converted_gguf(path, kind).is_dir() for kind in ("models", "tokenizers"))


def local_path(place: str, key: str) -> Path | None:
    """Find the folder or file that ``place`` names; None if it can only be a hub id.

    Raises:
        UserError: a package that is not installed, a path that does not exist, several GGUF files to choose from.
    """
    if place.startswith(PACKAGE):
        package, _, inside = place.partition("/")
        path = package_folder(package, key) / inside
        if not path.exists():
            raise UserError(key, f"no {inside!r} in {package!r}", "correct the path inside the package")
    else:
        path, exists = _expanded(place)
        if not exists:
            if place.startswith((".", "/", "~")) or place.count("/") > 1 or path.suffix in (".json", ".gguf"):
                raise UserError(key, f"no file or folder {place!r}", "correct the path, or give a hub id like org/name")
            return None
    return _only_gguf(path, key) if path.is_dir() else path


def _expanded(place: str) -> tuple[Path, bool]:
    """Turn ``place`` into a path, and tell whether it exists."""
    try:
        path = in_home(place)
        return path, path.exists()
    except OSError:  # a name too long for any file
        return Path(place), False


def _only_gguf(folder: Path, key: str) -> Path:
    """Return the folder, or the GGUF file in it where that is all a tokenizer can come from.

    Raises:
        UserError: there are several GGUF files to choose from.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files or any((folder / name).is_file() for name in (*_VOCABULARY_FILES, "tokenizer_config.json")):
        return folder
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(key, f"several GGUF files in {str(folder)!r} ({names})", "name one of them")
    return files[0]


def _single_file(path: Path, place: str, key: str) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        problem = f"{place!r} is no tokenizer.json ({one_line(error, kind=True)})"
        raise UserError(key, problem, "name a tokenizer.json, a GGUF file or a folder") from error
    # Afterwards: what a tokenizer is called while it is made, transformers may look up on the hub.
    tokenizer.name_or_path = place
    return tokenizer


def _gguf_tokenizer(file: Path, key: str) -> PreTrainedTokenizerBase:
    model = converted_gguf(file, "models")
    if model.is_dir():  # a training run has converted weights and tokenizer
        return load_tokenizer(str(model), None, key)

    def convert(aside: Path) -> None:
        from uld_ds.tokenization.gguf import save_gguf_tokenizer

        try:
            save_gguf_tokenizer(file, aside)
        except Exception as error:  # transformers raises whatever its parsing ran into
            problem = f"{file.name!r} cannot be read ({one_line(error, kind=True)})"
            raise UserError(key, problem, "name a GGUF file that transformers supports") from error

    # Reading a GGUF file takes seconds each time.
    return load_tokenizer(str(build_once(converted_gguf(file, "tokenizers"), convert)), None, key)


def _hub_tokenizer(name: str, key: str) -> PreTrainedTokenizerBase:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    silence: Exception | None = None
    try:
        HfApi().model_info(name, timeout=HUB_PATIENCE)
    except HFValidationError as error:
        raise _not_given(name, key, error) from error
    except Exception as error:  # unknown, gated, no network, offline mode
        silence = error
    try:
        return load_tokenizer(name, None, key, local_files_only=silence is not None)
    except UserError as error:
        if silence is None:
            raise
        raise _not_given(name, key, silence) from error


def _not_given(name: str, key: str, reason: Exception) -> UserError:
    return UserError(
        key,
        f"{name!r} is no file or folder, and the hub does not give it ({one_line(reason, kind=True)})",
        "correct the name, or the network or token that the hub needs",
    )


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """List the files of which a tokenizer needs one; none for those that work on bytes or code points."""
    own = set(tokenizer.vocab_files_names.values()) - {"tokenizer_config.json"}
    return own | _VOCABULARY_FILES if own else set()


def _found(place: str, revision: str | None, name: str) -> Path | None:
    """Find a file of a folder, or of a hub id that has just been loaded."""
    if Path(place).is_dir():
        file = Path(place) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    # What was just loaded from the hub is in its local cache.
    found: Any = cached_file(
        place,
        name,
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _reason(place: str, revision: str | None, error: Exception) -> str:
    """Say why there is no tokenizer, in fewer words than transformers has."""
    from tokenizers import Tokenizer

    if "trust_remote_code" in str(error):
        return "it needs code of its own, and uld-ds runs none that comes with a model"
    if find_spec("sentencepiece") is None and any(_found(place, revision, name) for name in SENTENCEPIECE_FILES):
        return "to read its SentencePiece model the package sentencepiece is missing: pip install sentencepiece"
    file = Path(place) / "tokenizer.json"
    if file.is_file():
        try:
            Tokenizer.from_file(str(file))
        except Exception as broken:  # bare Exceptions
            return f"tokenizer.json: {one_line(broken, kind=True)}"
    if isinstance(error, ValueError) and not any(_found(place, revision, name) for name in _VOCABULARY_FILES):
        return "no tokenizer.json or other vocabulary there"
    return one_line(error, kind=True)
