"""The tokenizer files that go into a checkpoint."""

from pathlib import Path

from qsjax.errors import InputError

_SMALL = 1 << 20
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """File name -> content: `tokenizer.json` and the small files beside it.

    A folder that has only `vocab.json` and `merges.txt`, as CLIP's is published, is compiled into a `tokenizer.json`.

    Raises:
        InputError: the folder holds no tokenizer.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        content = path.read_bytes()
    elif (folder / "merges.txt").is_file():
        content = _compile(folder)
    else:
        raise InputError(
            f"{folder}: has neither tokenizer.json nor merges.txt; name the tokenizer's folder"
        )
    beside = {
        name: (folder / name).read_bytes()
        for name in _BESIDE
        if (folder / name).is_file() and (folder / name).stat().st_size <= _SMALL
    }
    return {"tokenizer.json": content, **beside}


def _compile(folder: Path) -> bytes:
    import transformers  # about a second, and rarely needed

    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: is not a CLIP tokenizer ({str(error).splitlines()[0]}); name its folder"
        ) from error
    return tokenizer.backend_tokenizer.to_str(pretty=False).encode()
