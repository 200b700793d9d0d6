"""The tokenizer files that go into a checkpoint."""

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import parse_object, read_bytes, read_object, read_text, shown
from qsjax.untrusted.files import LARGE, TOKENIZER

_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def tokenizer_files(folder: Path, *, vocabulary: int) -> dict[str, bytes]:
    """File name -> content: `tokenizer.json` and the small files beside it.

    A folder that has only `vocab.json` and `merges.txt`, as CLIP's is published, is compiled into a `tokenizer.json`.

    Args:
        folder: of the tokenizer.
        vocabulary: ids that the text encoder knows.

    Raises:
        InputError: the folder holds no tokenizer, or a file that is too large.
        CheckpointError: a file is damaged, or the tokenizer has no tokens, or ids that the text encoder does not know.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        content = read_bytes(path, TOKENIZER)
    elif (folder / "merges.txt").exists():
        path, content = folder / "vocab.json", _compile(folder, vocabulary)
    else:
        raise InputError(
            f"{folder}: has neither tokenizer.json nor merges.txt; name the tokenizer's folder"
        )
    _check_ids(path, content, vocabulary)
    beside = {name: read_bytes(folder / name) for name in _BESIDE if (folder / name).exists()}
    for name, data in beside.items():
        parse_object(data, f"{folder / name}: the file")
    return {"tokenizer.json": content, **beside}


def needed_files(names: Collection[str]) -> list[str]:
    """Of the names in a folder those that `tokenizer_files` reads; none if it holds no tokenizer."""
    own = ("tokenizer.json",) if "tokenizer.json" in names else ("vocab.json", "merges.txt")
    return [name for name in (*own, *_BESIDE) if name in names and own[-1] in names]


def _check_ids(path: Path, content: bytes, vocabulary: int) -> None:
    """A tokenizer that can be read, and whose ids are rows of the embedding."""
    values = parse_object(content, f"{path}: the tokenizer")
    # Before the library sees them: it has a table as long as the largest id.
    _require_known(path, _written_ids(values), vocabulary)
    from tokenizers import Tokenizer

    with _explained(path, "a tokenizer; get it again from its source"):
        ids = Tokenizer.from_str(content.decode()).get_vocab(with_added_tokens=True).values()
    if not ids:
        raise CheckpointError(f"{path}: has no tokens; get it again from its source")
    _require_known(path, ids, vocabulary)


def _written_ids(values: Mapping[str, Any]) -> list[object]:
    """The ids that a tokenizer's JSON gives to tokens, as far as it has a dictionary of them."""
    model, added = values.get("model"), values.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    found: list[object] = list(words.values()) if isinstance(words, dict) else []
    if isinstance(added, list):
        found += [token.get("id") for token in added if isinstance(token, dict)]
    return found


def _require_known(path: Path, ids: Iterable[object], vocabulary: int) -> None:
    unknown = [number for number in ids if type(number) is not int or not 0 <= number < vocabulary]
    if unknown:
        raise CheckpointError(
            f"{path}: has tokens with the id {shown(unknown[-1])}, and the text encoder knows {vocabulary} from 0; take both"
            f" from one model"
        )


@contextmanager
def _explained(path: Path, what: str) -> Generator[None, None, None]:
    """The libraries raise anything, also a panic of their own language, which is no `Exception`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: is not {what} ({shown(reason, 200)})") from error


def _compile(folder: Path, vocabulary: int) -> bytes:
    """The `tokenizer.json` of CLIP's vocabulary and merges."""
    words = folder / "vocab.json"
    ids = read_object(words)
    _require_known(words, ids.values(), vocabulary)
    if not ids or len(set(ids.values())) != len(ids):
        raise CheckpointError(
            f"{words}: has no tokens, or one id for two of them; get it again from its source"
        )
    for line in read_text(folder / "merges.txt", LARGE).splitlines():
        parts = line.split()
        if line.startswith("#version") or not line:
            continue
        if len(parts) != 2 or not {*parts, "".join(parts)} <= ids.keys():
            raise CheckpointError(
                f"{folder / 'merges.txt'}: {shown(line)} is no pair of tokens of vocab.json; get both again from their source"
            )
    import transformers  # about a second, and rarely needed

    with _explained(folder, "a CLIP tokenizer; name its folder"):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer.backend_tokenizer.to_str(pretty=False).encode()
