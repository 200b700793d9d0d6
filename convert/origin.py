"""Where the parts of a conversion come from: this machine, or the hub; of the hub only the files that are needed."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from convert.containers.folder import INDEX, choose_weights, require_readable, weights_in
from convert.containers.listing import first_few
from convert.containers.opening import require_reader
from convert.containers.sharded import shards_of
from convert.hub_files import HubFiles
from convert.lora.request import only_file, require_suffix
from convert.lora.scaling import CONFIG
from convert.sources import PARTS, TOKENIZERS, Folder, parts_of
from convert.tokenizers import needed_files
from qsjax.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from qsjax.hub import Listing


def is_address(text: str) -> bool:
    """Whether a source is one of the hub; a slash is lost where an address was taken for a path."""
    return text.startswith("hf:/")


class Origin:
    """Finds sources by their paths and addresses.

    Args:
        files: gets the files of the hub; the small ones are fetched when they are found, weights are not.
    """

    def __init__(self, files: HubFiles) -> None:
        self.files = files

    def find(
        self, source: str | None, named: Mapping[str, str], loras: Iterable[str] = ()
    ) -> tuple[Path | None, dict[str, Path], tuple[Path, ...], str | None]:
        """The arguments of `Sources.find`, and the address of the source with its commit, for the manifest.

        Args:
            source: a path or an address; None where parts are named one by one.
            named: fields of `Sources`, each a path or an address.
            loras: paths or addresses; they stay where they are, whatever is deleted.

        Raises:
            InputError: the hub has no such thing or gives it to nobody, several files could be meant, or `offline` where
                nothing is of the hub.
            CheckpointError: the hub's listing or an index is damaged.
        """
        loras = tuple(loras)
        if not any(map(is_address, (source or "", *named.values()))):
            if self.files.offline and not any(map(is_address, loras)):
                raise _not_of_the_hub("`offline=True`", source)
            if self.files.deletes:
                raise _not_of_the_hub("`delete_source=True`", source)
        added = tuple(map(self._lora, loras))
        parts = {name: self.place(name, text) for name, text in named.items()}
        if source is None or not is_address(source):
            return None if source is None else Path(source), parts, added, None
        listing = self._look(source)
        found = self._source(listing, frozenset(named))
        origin = str(replace(listing.address, revision=listing.commit))
        return None, {**found, **parts}, added, origin

    def place(self, part: str, text: str) -> Path:
        """Where a part is or will be on this machine.

        Args:
            part: a field of `Sources`, or another word for a single file.
            text: a path or an address.

        Raises:
            InputError, CheckpointError: as `find`.
        """
        return self._part(part, self._look(text)) if is_address(text) else Path(text)

    def _lora(self, text: str) -> Path:
        """Where a LoRA file is or will be; what says its alpha comes at once."""
        if not is_address(text):
            return Path(text)
        listing = self._look(text)
        if listing.is_file:
            name = listing.address.path
            require_suffix(name, str(listing.address))
        else:
            here = (name for name in listing.below() if "/" not in name)
            name = listing.name(only_file(here, str(listing.address)))
        if CONFIG in listing.below():
            self.files.small(listing, [listing.name(CONFIG)])
        (path,) = self.files.add(listing, [name])
        return path

    def _look(self, text: str) -> "Listing":
        from qsjax.hub import SCHEME, Address, look

        address = Address.parse(SCHEME + text.removeprefix("hf:").lstrip("/"))
        return look(address, offline=self.files.offline)

    def _source(self, listing: "Listing", named: frozenset[str]) -> dict[str, Path]:
        if listing.is_file:
            return (
                {}
                if "transformer" in named
                else {"transformer": self._part("transformer", listing)}
            )
        found = parts_of(_HubFolder(listing, self.files), named)
        parts = {}
        for part, path in found.items():
            if part not in named:
                inside = listing.at(path.relative_to(listing.root).as_posix())
                parts[part] = self._part(part, inside)
        return parts

    def _part(self, part: str, listing: "Listing") -> Path:
        if part in PARTS:
            return self._weights(part, listing)
        if part in TOKENIZERS.values():
            names = [] if listing.is_file else needed_files(listing.below())
            if not names:
                raise InputError(
                    f"{listing.address}: has neither tokenizer.json nor merges.txt; name the tokenizer's folder"
                )
            self.files.small(listing, map(listing.name, names))
        elif part == "scheduler":
            names = listing.below() & {"scheduler_config.json"}
            self.files.small(listing, map(listing.name, names))
        elif not listing.is_file:
            raise InputError(
                f"{listing.address}: is a folder, and {part.replace('_', ' ')} is one file; name it "
                f"({first_few(sorted(listing.below()))})"
            )
        elif listing.address.path in weights_in(listing.files):
            self.files.add(listing, [listing.address.path])
        else:
            self.files.small(listing, [listing.address.path])
        return listing.path

    def _weights(self, part: str, listing: "Listing") -> Path:
        """The file of the weights; known are all that belong to it."""
        below = listing.below()
        if listing.is_file:
            chosen = PurePosixPath(listing.address.path).name
        else:
            chosen = choose_weights(below, PARTS[part], str(listing.address))
        require_readable(f"{listing.address.repo}/{listing.name(chosen)}")
        require_reader(listing.root / listing.name(chosen))
        folder = PurePosixPath(chosen).parent
        beside = {
            PurePosixPath(name).name for name in below if PurePosixPath(name).parent == folder
        }
        small = [name for name in ("config.json",) if name in beside]
        if part in TOKENIZERS:
            small += needed_files(beside)
        self.files.small(listing, [listing.name(str(folder / name)) for name in small])
        path = listing.root / listing.name(chosen)
        weights = [chosen]
        if INDEX.search(chosen):
            self.files.small(listing, [listing.name(chosen)])
            weights = [str(folder / name) for name in shards_of(path)]
            if absent := sorted(set(weights) - below):
                raise CheckpointError(
                    f"{listing.address}: {chosen} names {len(weights)} shards, and the hub does not list {first_few(absent)}; "
                    f"name another revision"
                )
        # The scales of HunyuanVideo's float8 weights lie in a file of their own.
        scales = folder / f"{path.stem}_map{path.suffix}"
        weights += [str(scales)] * (str(scales) in below)
        self.files.add(listing, map(listing.name, weights))
        return path


def _not_of_the_hub(option: str, source: str | None) -> InputError:
    return InputError(
        f"{option} is for a model of the hub (hf://OWNER/NAME), and the source is {source}; leave it out"
    )


class _HubFolder(Folder):
    """A folder of the hub; what is read of it is fetched."""

    def __init__(self, listing: "Listing", files: HubFiles) -> None:
        super().__init__(listing.path)
        self._listing, self._files, self._names = listing, files, listing.below()

    def has(self, name: str) -> bool:
        return name in self._names

    def has_folder(self, name: str) -> bool:
        return any(below.startswith(f"{name}/") for below in self._names)

    def read(self, name: str) -> dict[str, Any]:
        self._files.small(self._listing, [self._listing.name(name)])
        return super().read(name)

    def weights(self) -> list[str]:
        return weights_in(self._names)

    def __str__(self) -> str:
        return str(self._listing.address)
