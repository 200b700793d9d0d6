"""Downloads from a hub on this machine: whole, resumed to the byte, found again without it."""

import random
from pathlib import Path

import pytest
from hub.hub_server import COMMIT, REPO, child, download, reached_alone
from huggingface_hub import constants

from qsjax.cache import cache_directory
from qsjax.errors import CheckpointError, InputError
from qsjax.hub import Address, beginning, filling, look, pieces
from qsjax.hub.pieces import Pieces, counted

ADDRESS = Address(REPO)
WEIGHTS = "transformer/weights.safetensors"
CONFIG = "transformer/config.json"


@pytest.fixture
def model(tmp_path):
    """Files of a model, and files that no conversion reads."""
    folder = tmp_path / "model"
    noise = random.Random(0)
    for name, size in {
        WEIGHTS: 300_000,
        CONFIG: 200,
        "vae/a.pt": 5000,
        "image.png": 10,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(size))
    return folder


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    with reached_alone(monkeypatch, model, tmp_path) as server:
        yield server


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def expected(model):
    wanted = (WEIGHTS, CONFIG, "vae/a.pt")
    return {name: (model / name).read_bytes() for name in wanted}


def test_addresses():
    assert Address.parse("hf://a/b") == Address("a/b")
    assert Address.parse("hf://a/b.c-d/e/f@v1") == Address("a/b.c-d", "e/f", "v1")
    assert Address.parse("hf://a/b@v1") == Address("a/b", "", "v1")
    assert Address.parse("hf://a/b@v1/c/d.safetensors") == Address("a/b", "c/d.safetensors", "v1")
    assert Address.parse("hf://a/b/c/d.safetensors") == Address("a/b", "c/d.safetensors")
    assert Address.parse(f"hf://a/b@{COMMIT}/vae") == Address("a/b", "vae", COMMIT)
    assert Address.parse("hf://a/b@main/vae/") == Address("a/b", "vae")
    assert str(Address.parse("hf://a/b/c")) == "hf://a/b/c@main"


def test_revisions_with_a_slash():
    for text, path in [
        ("hf://a/b@my%2Fbranch", ""),
        ("hf://a/b/c@my/branch", "c"),  # behind a path there is only one reading
        ("hf://a/b@my%2Fbranch/c.pt", "c.pt"),
    ]:
        address = Address.parse(text)
        assert address == Address("a/b", path, "my/branch")
        assert Address.parse(str(address)) == address
    assert Address.parse("hf://a/b@refs/pr/3") == Address("a/b", "", "refs/pr/3")
    assert Address.parse("hf://a/b@refs/pr/3/c") == Address("a/b", "c", "refs/pr/3")
    with pytest.raises(InputError) as caught:
        Address.parse("hf://a/b@my/branch")
    message = str(caught.value)
    assert "as the revision 'my/branch' or as 'branch' of the revision 'my'" in message
    readings = [Address.parse(f"hf://a/b{end}") for end in ("@my%2Fbranch", "/branch@my")]
    assert all(f" {end} " in message for end in ("@my%2Fbranch", "/branch@my"))
    assert readings == [Address("a/b", "", "my/branch"), Address("a/b", "branch", "my")]


@pytest.mark.parametrize("name", ["a model (1).safetensors", "a@b.pt", "50%.json", "ä.json"])
def test_other_characters_are_percent_encoded(name):
    address = Address("a/b", f"c/{name}", "v+1")
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "wrong",
    [
        "a/b", "hf://a", "hf://a/../b", "hf://a/b/../../c", "hf://a/b@../c", "hf:///a/b", "hf://a/b c", "hf://../b",
        "hf://a--b/c", "hf://a/" + "b" * 300, "hf://a/b\x1b[31m", "hf://a/b@", "hf://a/b@c@d", "hf://a/b/%2E%2E/c",
        "hf://a/b/c%2F..%2Fd", "hf://a/b/%00", "hf://a/b@%1b", "hf://a/b/%zz", "hf://a/b//c", "hf://a/b/.git/x", "hf://a/b?c",
    ],
)  # fmt: skip
def test_what_is_no_address(wrong):
    with pytest.raises(InputError, match="is no address; write hf://OWNER/NAME"):
        Address.parse(wrong)


def test_what_a_conversion_reads_is_downloaded_once(hub, model):
    folder, commit = download(ADDRESS)
    assert commit == COMMIT
    assert contents(folder) == expected(model)
    sent = hub.sent
    assert download(ADDRESS) == (folder, commit)
    assert hub.sent == sent


def test_a_folder_of_a_model(hub, model):
    folder, _ = download(Address(REPO, "vae"))
    assert contents(folder) == {"a.pt": (model / "vae/a.pt").read_bytes()}


def test_without_a_network(hub, model, monkeypatch):
    with pytest.raises(InputError, match="was not downloaded, and no network may be used"):
        download(ADDRESS, offline=True)
    folder, commit = download(ADDRESS)
    hub.fault = (500, "")
    assert download(ADDRESS, offline=True) == (folder, commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(ADDRESS) == (folder, commit)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="1 of 3 files are not here"):
        download(ADDRESS)


@pytest.mark.whole
def test_killed_at_ten_moments_it_goes_on_where_it_stopped(hub, model, tmp_path):
    size = 32 << 20
    (model / WEIGHTS).write_bytes(random.Random(0).randbytes(size))
    for moment in sorted(random.Random(1).sample(range(size // 50, size), 10)):
        process = child(hub, tmp_path / "theirs")
        hub.on_block = lambda sent, process=process, moment=moment: (
            process.kill() if sent >= moment else None
        )
        process.communicate()
        assert process.returncode != 0
        assert not list((tmp_path / "cache").rglob(Path(WEIGHTS).name))
    hub.on_block = lambda sent: None
    out, error = child(hub, tmp_path / "theirs").communicate()
    assert out, error
    assert contents(Path(out.strip())) == expected(model)
    # What lay in buffers and on the wire is lost, of each connection.
    assert hub.sent < 1.5 * size
    assert len({start >> 20 for name, start in hub.asked if name == WEIGHTS}) == size / 2**20


def test_a_branch_that_moves_on_costs_what_has_changed(hub, model):
    before, _ = download(ADDRESS)
    hub.commit, hub.sent = "b" * 40, 0
    (model / CONFIG).write_bytes(bytes(300))
    after, commit = download(ADDRESS)
    assert (after != before, commit) == (True, "b" * 40)
    assert contents(after) == expected(model)
    assert hub.sent == 300
    assert contents(before)[CONFIG] != bytes(300)


def test_an_end_that_a_power_cut_spoilt_is_fetched_again(hub, model, caplog):
    whole = (model / WEIGHTS).read_bytes()
    part = cache_directory() / "hub" / "owner--model" / COMMIT / f"{WEIGHTS}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(whole[:200_000] + bytes(50_000))
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert hub.asked[1:3] == [(WEIGHTS, 250_000), (WEIGHTS, 0)]
    assert "is fetched again" in caplog.text


def test_a_part_that_is_right_is_kept(hub, model):
    part = cache_directory() / "hub" / "owner--model" / COMMIT / f"{WEIGHTS}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((model / WEIGHTS).read_bytes()[:299_000])
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert hub.sent == 1000 + sum(map(len, expected(model).values())) - 300_000


PIECE = 1 << 15


@pytest.fixture
def in_pieces(monkeypatch):
    """Ten pieces of the weights."""
    monkeypatch.setattr(pieces, "PIECE", PIECE)


def part_of(name):
    part = cache_directory() / "hub" / "owner--model" / COMMIT / f"{name}.part"
    part.parent.mkdir(parents=True)
    return part


@pytest.mark.usefixtures("in_pieces")
def test_several_connections_fetch_every_byte_once(hub, model):
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert hub.sent == sum(map(len, expected(model).values()))
    starts = sorted(start for name, start in hub.asked if name == WEIGHTS)
    assert starts == list(range(0, 300_000, PIECE))


@pytest.mark.usefixtures("in_pieces")
def test_pieces_that_are_here_are_not_fetched_again(hub, model, monkeypatch):
    """The beginning that an older download left, then holes; then an error in the midst of it."""
    whole = (model / WEIGHTS).read_bytes()
    part = part_of(WEIGHTS)
    part.write_bytes(whole[:70_000])
    with Pieces(part, len(whole)) as begun:
        begun.write(8, whole[8 * PIECE : 9 * PIECE])
        begun.write(4, whole[4 * PIECE : 4 * PIECE + 100])
    monkeypatch.setattr(filling, "CONNECTIONS", 1)
    hub.on_block = lambda sent: setattr(hub, "fault", (410, "") if sent > 100_000 else None)
    with pytest.raises(InputError, match="the hub answers 410"):
        download(ADDRESS)
    before = sum(counted(part, len(whole)))
    assert 70_000 + PIECE + 100 < before < len(whole)
    hub.on_block, hub.fault, hub.sent = lambda sent: None, None, 0
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert hub.sent == sum(map(len, expected(model).values())) - before - 200
    assert not list(folder.rglob("*.pieces"))


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(
    "record", [b"", b"x", bytes(80), b"\xff" * 80, bytes(88), b"\xff" * 100_000]
)
def test_a_record_of_pieces_that_says_what_cannot_be(hub, model, record):
    part = part_of(WEIGHTS)
    part.write_bytes((model / WEIGHTS).read_bytes()[:200_000])
    part.with_name(f"{part.name}.pieces").write_bytes(record)
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert hub.sent == sum(map(len, expected(model).values()))


@pytest.mark.usefixtures("in_pieces")
def test_what_is_known_of_pieces_is_compared_in_the_end(hub, model, caplog):
    """A power cut may leave a count of bytes that never reached the disk."""
    part = part_of(WEIGHTS)
    with Pieces(part, 300_000) as begun:
        begun.write(3, bytes(1000))
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert "is fetched again" in caplog.text


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("begun", [0, 100_000])
def test_a_server_without_ranges_gets_one_request(hub, model, begun):
    if begun:
        part_of(WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:begun])
    hub.ranges = False
    assert beginning(look(ADDRESS), WEIGHTS, 50) == (model / WEIGHTS).read_bytes()[:50]
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)


@pytest.mark.usefixtures("in_pieces")
def test_the_beginning_of_a_file_is_fetched_once(hub, model):
    whole, listing = (model / WEIGHTS).read_bytes(), look(ADDRESS)
    for nbytes in (1000, 20_000, 500, 300_001):
        assert beginning(listing, WEIGHTS, nbytes) == whole[:nbytes]
        assert hub.sent == min(max(20_000 if nbytes == 500 else nbytes, 1000), 300_000)
    folder, _ = download(ADDRESS)
    assert beginning(listing, WEIGHTS, 70) == whole[:70]
    assert contents(folder) == expected(model)
    assert hub.sent == sum(map(len, expected(model).values()))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_that_is_not_the_one_listed(hub, name):
    hub.damage.add(name)
    with pytest.raises(CheckpointError, match=f"{name} arrives damaged"):
        download(ADDRESS)
    assert hub.asked.count((name, 0)) == 2
    assert not list(cache_directory().rglob(Path(name).name))


def test_a_file_of_the_hubs_own_cache_is_taken(hub, model, monkeypatch, tmp_path):
    def found(repo, name, *, revision):
        assert (repo, revision) == (REPO, COMMIT)
        return str(tmp_path / "theirs" / name) if name in (WEIGHTS, CONFIG) else None

    (tmp_path / "theirs/transformer").mkdir(parents=True)
    (tmp_path / "theirs" / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes())
    (tmp_path / "theirs" / CONFIG).write_bytes(bytes(200))  # of the right size, with other content
    monkeypatch.setattr("qsjax.hub.folder.try_to_load_from_cache", found)
    folder, _ = download(ADDRESS)
    assert contents(folder) == expected(model)
    assert hub.asked == [(CONFIG, 0), ("vae/a.pt", 0)]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ((403, "GatedRepo"), "behind a licence; accept it"),
        ((404, "RepoNotFound"), "is no model of the hub, or a private one"),
        ((404, "RevisionNotFound"), "has no revision 'main'"),
        ((410, ""), "the hub answers 410; try again later"),
    ],
)
def test_what_the_hub_refuses(hub, fault, sentence):
    hub.fault = fault
    with pytest.raises(InputError, match=sentence):
        download(ADDRESS)


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="the hub cannot be reached"):
        download(ADDRESS)


@pytest.mark.parametrize(
    "name", ["../x.json", "/x.json", "a/../../x.json", "a\\x.json", ".git/x.json"]
)
def test_a_listing_that_names_other_places(hub, name):
    hub.listed = name
    with pytest.raises(CheckpointError, match=r"a file of the listing has the (name|path)"):
        download(ADDRESS)


def test_a_commit_that_is_a_path(hub):
    hub.commit = "../../elsewhere"
    with pytest.raises(CheckpointError, match="which is no commit"):
        download(ADDRESS)


def test_a_repository_of_other_things(hub, model):
    for path in model.rglob("*.*"):
        if path.name != "image.png":
            path.unlink()
    with pytest.raises(InputError, match="holds nothing that is converted"):
        download(ADDRESS)
