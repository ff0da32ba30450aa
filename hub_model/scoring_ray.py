"""Screen archives on many machines: Ray Data hands pieces of the list of files to a pool of model actors.

Needs ``covid-xct[ray]``. The machine that starts the run lists the files and opens none; each actor holds the models,
reads the pictures of a piece itself and leaves their rows as one Parquet file, whole or not at all. Its name comes from
the names of the pictures: where a worker is lost, Ray gives its piece to another, which writes the very same file, or
finds it there. A repeated run reads which pictures have rows and goes on with the others.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import secrets
import socket
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from . import scoring
from .archives import TAR_SUFFIXES, ZIP_SUFFIX, Archive, ArchiveRefused, open_archive
from .folders import is_rubbish
from .grey import MAX_BYTES
from .heatmap import overlay
from .listing import Item, Packed, Refusal, items, of_archive
from .refused import Failed, Reason, Refused
from .rows import check_same, locked, one_line, table
from .scoring import DEFAULT, Models, Options, Tally
from .screener import Finding, ahead

try:
    import pyarrow as pa
    import ray
    import ray.data
    from pyarrow import fs, parquet

    from .places import Place, Steady, is_remote, place
except ImportError as error:
    raise Refused(
        f"--engine ray needs {error.name}, which is not installed: pip install 'covid-xct[ray]', on every machine."
    ) from None

SETTINGS, LOCK = "settings.json", ".lock"
PIECE = 256  # pictures whose rows lie in one file; a lost worker has at most so many to judge again
LEAST_PIECE, SHARES = 8, 4  # small archives are cut so that every core gets a few pieces
MOST_BLOCKS = 4000  # objects that the names are handed to Ray in
HELD = 4096  # names that are gathered before they are packed together
TRIES = 5  # of a piece whose workers die; a picture that kills its reader must not be tried without end
SHARE = 0.5  # of a core that Ray books for an actor: it puts one on each core, and those of lost machines fit beside
OPEN_ARCHIVES = 4  # that an actor remembers
REACHED_WITHIN = 5  # seconds
MISSING = Reason("there is no such file. Check the path; name one file, not a folder.", "missing")
LOCAL = -1  # in place of the number of a root: the path is one of the machine itself


@dataclass(frozen=True)
class Order:
    """What every actor is told.

    Attributes:
        settings: what the rows depend on, as the machine that started the run has it.
        roots: addresses that paths of pictures elsewhere belong to.
        seen: local paths that the machine that started the run has; an actor's machine must have them, too.
        size: pictures of one piece.
    """

    models: Models
    settings: dict[str, Any]
    roots: tuple[str, ...]
    seen: tuple[str, ...]
    out: str
    options: Options
    size: int


class Entry(NamedTuple):
    """A picture in the list of the run.

    Attributes:
        name: what its row is called.
        number: its place in its archive.
        root: which of the roots its path belongs to, or LOCAL.
        path: of its file, or of the archive; bytes, as not every name of a file is text.
        packed: whether it lies in an archive.
        refusal: its reason as JSON where it never becomes a picture.
    """

    name: str
    number: int
    root: int
    path: bytes
    packed: bool = False
    refusal: str | None = None


SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64()), ("root", pa.int32()), ("path", pa.binary()),
                    ("packed", pa.bool_()), ("refusal", pa.string())])  # fmt: skip


def score(
    paths: Sequence[str | os.PathLike],
    models: Models,
    out: str | os.PathLike,
    options: Options = DEFAULT,
    *,
    address: str | None = None,
    watch: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Judge every picture under some paths with all machines of a Ray cluster; the rows are those of `scoring.score`.

    CT series are judged slice by slice, a row a file, and volumes are refused: their slices lie in many pieces.

    Args:
        paths: as for `scoring.score`, and addresses of files and folders elsewhere.
        models: who judges; every machine opens them itself and must find the same weights.
        out: folder for the rows, a path that all machines share or an address. Rows of an earlier run stay, and their
            pictures are not judged again.
        options: how they are judged, always slice by slice; `workers` are threads of each actor.
        address: of a Ray cluster that this machine belongs to; by default a node is started here, for this run alone.
        watch: called after every piece.

    Returns:
        How many pictures were decided how.

    Raises:
        Refused: there is no file under the paths; `out` holds the pictures, or rows of other models or settings; no
            cluster answers at the address, a place cannot be opened, or a machine has other weights or does not see
            the paths.
        Failed: workers keep dying, or a place stopped answering; rows so far are kept.
        OSError: a place cannot be written; rows so far are kept.
    """
    models, options = _absolute(models), replace(options, per_slice=True)
    screener = replace(models, device="cpu").opened(threads=1)
    screener.screen_many([], options.operating_point)  # a wrong point is said before anything is made
    folder, tally = place(out), Tally()
    results = [folder, *([place(options.heat_maps)] if options.heat_maps else [])]
    options = replace(options, heat_maps=results[1].full_name if options.heat_maps else None)
    settings = scoring.settings_of(screener, options)
    for one in results:
        _check_apart(paths, one)
    with _prepared(results, settings):
        todo = scoring.unjudged(_entries(paths, tally, results), _judged(folder), tally)
        names = pa.concat_tables([SCHEMA.empty_table(), *_tables(todo)])
        if not tally.expected:
            raise scoring.nothing_found(paths)
        watch(tally)
        if not names.num_rows:
            return tally
        with _cluster(address):
            units = _units(models.device)
            size = min(PIECE, max(LEAST_PIECE, names.num_rows // int(SHARES * units)))
            roots, here = tuple(map(os.fspath, paths)), _seen(paths, results, models)
            order = Order(models, settings, roots, here, folder.full_name, options, size)
            for told in _run(names, order, units):
                if told["problem"]:
                    raise (Failed if told["failed"] else Refused)(told["problem"])
                tally.decisions.update(json.loads(told["decisions"]))
                watch(tally)
    return tally


# --- what there is to do --------------------------------------------------------------------------


def _absolute(models: Models) -> Models:
    """Name folders and files of this machine in full: an actor's working folder is another one."""
    model = os.path.abspath(models.model) if os.path.isdir(models.model) else models.model
    return replace(models, model=model, sites=tuple(map(os.path.abspath, models.sites)))


def _seen(paths: Sequence[str | os.PathLike], results: list[Place], models: Models) -> tuple[str, ...]:
    """List the local paths that every machine must have."""
    pictures = [os.path.abspath(path) for path in paths if not is_remote(path) and os.path.exists(path)]
    folders = [one.path for one in results if one.is_local]
    model = [models.model] if os.path.isabs(models.model) else []
    return (*pictures, *folders, *model, *models.sites)


def _check_apart(paths: Sequence[str | os.PathLike], folder: Place) -> None:
    if folder.is_local:
        scoring.check_apart([path for path in paths if not is_remote(path)], folder.path, "Folder")
    elif any(f"{os.fspath(path).rstrip('/')}/".startswith(f"{folder.name.rstrip('/')}/") for path in paths):
        raise Refused(
            f"Folder {folder.name} holds the pictures. Give a folder of its own for what is written."
        )


@contextlib.contextmanager
def _prepared(results: list[Place], settings: dict[str, Any]) -> Iterator[None]:
    """Make the folders, note the settings or compare them with those of an earlier run, and keep other runs out."""
    folder = results[0]
    for one in results:
        one.system.create_dir(one.path, recursive=True)
    with contextlib.ExitStack() as stack:
        if folder.is_local:
            stack.enter_context(locked(Path(folder.within(LOCK)), folder.name))
        for info in folder.files():
            if info.base_name.startswith(".") and info.base_name.lstrip(".").startswith(
                "part-"
            ):  # of workers that were killed
                folder.system.delete_file(info.path)
        if folder.exists(SETTINGS):
            with folder.system.open_input_stream(folder.within(SETTINGS)) as stream:
                check_same(folder.name, json.loads(stream.read()), settings)
        elif any(not info.base_name.startswith(".") for info in folder.files()):
            raise Refused(
                f"{folder.name} holds files, and nothing says which models made them ({SETTINGS} is missing). Give "
                "another --out, or move them away."
            )
        else:
            folder.write(SETTINGS, json.dumps(settings, indent=2).encode())
        yield


def _judged(folder: Place) -> Counter[str]:
    """Count how often each picture is in the rows that an earlier run has left."""
    done: Counter[str] = Counter()
    for info in folder.files():
        if info.base_name.startswith("part-"):
            with folder.system.open_input_file(info.path) as stream:
                done.update(parquet.read_table(stream, columns=["file"])["file"].to_pylist())
    return done


def _entries(paths: Sequence[str | os.PathLike], tally: Tally, results: list[Place]) -> Iterator[Entry]:
    """Yield everything under the paths: first what is on this machine, then what is elsewhere."""
    ours = [Path(one.path).resolve() for one in results if one.is_local]
    for item in items([path for path in paths if not is_remote(path)], tally, ours):
        path = item.source if isinstance(item.source, Path) else Path()
        yield _entry(item, LOCAL, os.fsencode(os.path.abspath(path)))
    for number, path in enumerate(paths):
        if is_remote(path):
            yield from _elsewhere(number, place(path), tally, results)


def _entry(item: Item, root: int, path: bytes) -> Entry:
    if isinstance(item.source, Refusal):
        reason = item.source.reason
        told = json.dumps([str(reason), reason.code, reason.values], default=str)
        return Entry(item.name, item.number, root, path, refusal=told)
    if isinstance(item.source, Packed):
        path = os.fsencode(os.path.abspath(item.source.archive.path)) if root == LOCAL else path
        return Entry(item.name, item.number, root, path, packed=True)
    return Entry(item.name, item.number, root, path)


def _elsewhere(number: int, root: Place, tally: Tally, results: list[Place]) -> Iterator[Entry]:
    """Yield the files of another file system; archives are known by their names there, and opened when reached."""
    info = root.system.get_file_info(root.path)
    if info.type == fs.FileType.NotFound:
        tally.expected += 1
        yield _entry(Item(one_line(root.name), Refusal(MISSING)), number, b"")
        return
    ours = tuple(f"{one.path.rstrip('/')}/" for one in results if not one.is_local)
    for file in [info] if info.type == fs.FileType.File else root.files():
        below = file.path[len(root.path) :].strip("/")
        *folders, last = below.split("/")
        if file.path.startswith(ours) and ours:
            continue
        if is_rubbish(last) or any(is_rubbish(folder, is_folder=True) for folder in folders):
            tally.rubbish += 1
            continue
        tally.expected += 1
        name, path = one_line("/".join(filter(None, [root.name.rstrip("/"), below]))), file.path.encode()
        if not last.lower().endswith((ZIP_SUFFIX, *TAR_SUFFIXES)):
            yield _entry(Item(name, None), number, path)
            continue
        try:
            archive = open_archive(file.path, stream=Steady(root, file.path))
        except ArchiveRefused as refusal:
            yield _entry(Item(name, Refusal(refusal.reason)), number, path)
        else:
            yield from (_entry(item, number, path) for item in of_archive(name, archive, tally))


def _tables(entries: Iterator[Entry]) -> Iterator["pa.Table"]:
    """Yield the list in packed tables: ten million names would not fit into memory as objects of Python."""
    while some := list(itertools.islice(entries, HELD)):
        yield pa.Table.from_arrays(
            [
                pa.array(column, kind)
                for column, kind in zip(zip(*some, strict=True), SCHEMA.types, strict=True)
            ],
            schema=SCHEMA,
        )


# --- the cluster ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Join a cluster, or start a node of our own; a connection that Ray already has is used as it is."""
    if ray.is_initialized():
        yield
        return
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE")}
    if address is None and not os.environ.get("RAY_AUTH_TOKEN"):
        # the ports of our node are open to the network: only who knows this hands it work (RAY_AUTH_MODE is by
        # default that of a token where a node is started)
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    else:
        _check_reached(address)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    own = {"include_dashboard": False} if address is None else {}
    try:
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except Exception as error:  # Ray raises many kinds here, Exception itself among them
            raise _unreached(address, error) from error
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _check_reached(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit() or "/" in address:
        raise Refused(
            f"--address {address}: give HOST:PORT of the cluster's head as `ray start --head` prints it (the port is "
            "usually 6379), or auto on a machine of the cluster."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise _unreached(address, error) from error


def _unreached(address: str | None, error: Exception) -> Refused:
    reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    if address is None:
        return Refused(f"Ray could not be started on this machine ({reason}). Try --engine local.")
    return Refused(
        f"No Ray cluster answers at {address} ({reason}). Start one with `ray start --head`, join this machine with "
        "`ray start --address HOST:PORT`, or leave --address out to use this machine alone."
    )


def _units(device: str) -> float:
    """Count the cores of the cluster, or its GPUs where those are asked for."""
    kind = "CPU" if device == "cpu" else "GPU"
    units = ray.cluster_resources().get(kind, 0)
    if not units:
        raise Refused(
            f"The Ray cluster has no {kind} to give. Use another --device, or start nodes that have one."
        )
    return units


def _run(names: "pa.Table", order: Order, units: float) -> Iterator[dict[str, Any]]:
    """Yield what the actors report on each piece, as each is finished."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    pieces = -(-names.num_rows // order.size)
    blocks = min(pieces, MOST_BLOCKS)
    most = max(1, min(blocks, int(units)))
    share = {"num_cpus": SHARE} if order.models.device == "cpu" else {"num_cpus": 0, "num_gpus": 1}
    told = ray.data.from_arrow(names, override_num_blocks=blocks).map_batches(
        Judge,
        fn_constructor_args=(order,),
        batch_size=None,  # a block is a batch: whoever takes its place later finds the same pieces in it
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=most, max_size=max(most, blocks)),
        **share,
    )
    try:
        yield from told.iter_rows()
    except ray.exceptions.RayError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise Failed(
            f"The work could not be ended on this cluster ({reason}). Rows so far are kept; the same command goes on."
        ) from error


# --- an actor -------------------------------------------------------------------------------------


class Judge:
    """An actor that opens the models once and judges pieces of the list.

    What goes wrong is reported in words, not as an exception: Ray would hand out a stack trace, and try again what
    cannot succeed.

    Args:
        order: what to do.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._archives: OrderedDict[tuple[int, bytes], Archive] = OrderedDict()
        self._lock = threading.Lock()
        self._lost: list[str] = []
        self._problem = None
        try:
            self._open()
        except (Refused, OSError) as error:
            self._problem = str(error)

    def _open(self) -> None:
        order, host = self.order, socket.gethostname()
        for path in order.seen:
            if not os.path.exists(path):
                raise Refused(
                    f"{host} has no {path}. With several machines, give paths that all of them share, or addresses "
                    "such as s3://bucket/folder."
                )
        device = order.models.device.partition(":")[0]  # Ray shows each actor its own GPU alone
        self.screener = replace(order.models, device=device).opened(threads=1)
        if scoring.settings_of(self.screener, order.options) != order.settings:
            raise Refused(
                f"{host} has other models than the machine that started the run. Install the same covid-xct on every "
                "machine."
            )
        self.out = place(order.out)
        self.heat_maps = place(order.options.heat_maps) if order.options.heat_maps else None
        self.roots = {number: place(root) for number, root in enumerate(order.roots) if is_remote(root)}

    def __call__(self, names: "pa.Table") -> Iterator["pa.Table"]:
        for start in range(0, names.num_rows, self.order.size):
            decisions, problem, failed = Counter(), self._problem, False
            if not problem:
                try:
                    decisions = self._piece(
                        [Entry(**row) for row in names.slice(start, self.order.size).to_pylist()]
                    )
                except Refused as error:
                    problem = str(error)
                except (Failed, OSError) as error:
                    problem, failed = f"{error} Rows so far are kept; the same command goes on.", True
            yield pa.table(
                {"decisions": [json.dumps(decisions)], "problem": [problem or ""], "failed": [failed]}
            )
            if problem:
                return

    def _piece(self, entries: list[Entry]) -> Counter[str]:
        """Write the rows of a piece, if they are not there; return how often each decision is among them."""
        mark = hashlib.sha256(
            "\n".join(f"{entry.number} {entry.name}" for entry in entries).encode()
        ).hexdigest()
        file = f"part-{mark[:32]}.parquet"
        if self.out.exists(file):  # of an actor that was lost after it had written it
            with self.out.system.open_input_file(self.out.within(file)) as stream:
                return Counter(parquet.read_table(stream, columns=["decision"])["decision"].to_pylist())
        options, tries = self.order.options, [f".{file}.try{number}" for number in range(TRIES)]
        untried = next((name for name in tries if not self.out.exists(name)), None)
        if untried is None:
            raise Failed(
                f"{TRIES} workers died over the {len(entries)} pictures from {entries[0].name} to {entries[-1].name}. "
                "Take out the one that does it."
            )
        self.out.write(untried, b"")
        found = self.screener.screen_many(
            ahead(self._source, entries, options.workers, 2 * options.batch_size + options.workers),
            options.operating_point,
            self.heat_maps is not None,
            batch_size=options.batch_size,
            workers=options.workers,
            keep_images=self.heat_maps is not None,
        )
        rows = [
            scoring.row_of(entry.name, finding, self._drawn(entry, finding))
            for entry, finding in zip(entries, found, strict=True)
        ]
        if self._lost:
            raise Failed(self._lost.pop())
        content = io.BytesIO()
        parquet.write_table(table(rows), content)
        self.out.write(file, content.getvalue())
        for name in tries[: tries.index(untried) + 1]:
            self.out.delete(name)
        return Counter(row["decision"] for row in rows)

    def _source(self, entry: Entry) -> Any:
        """Return an entry as `Screener.screen_many` takes it: a path of this machine, or contents with their name."""
        if entry.refusal is not None:
            text, code, values = json.loads(entry.refusal)
            return Refusal(Reason(text, code, **values))
        if entry.packed:
            with self._lock:
                archive = self._archive(entry)
            return Packed(archive, next(one for one in archive.members if one.number == entry.number))
        if entry.root == LOCAL:
            return Path(os.fsdecode(entry.path))
        try:
            with Steady(self.roots[entry.root], entry.path.decode()) as stream:
                named = io.BytesIO(stream.read(MAX_BYTES + 1))
        except FileNotFoundError:
            return Refusal(MISSING)
        named.name = entry.name
        return named

    def _archive(self, entry: Entry) -> Archive:
        key = (entry.root, entry.path)
        if key not in self._archives:
            if entry.root == LOCAL:
                self._archives[key] = open_archive(os.fsdecode(entry.path))
            else:
                path = entry.path.decode()
                stream = Steady(self.roots[entry.root], path, self._lost)
                self._archives[key] = open_archive(path, stream=stream)
            while len(self._archives) > OPEN_ARCHIVES:
                self._archives.popitem(last=False)  # it closes when the last of its pictures is done
        return self._archives[key]

    def _drawn(self, entry: Entry, finding: Finding) -> str | None:
        if self.heat_maps is None or finding.heat_map is None:
            return None
        stream, name = io.BytesIO(), scoring.drawing_name(entry.name, entry.number)
        overlay(finding.image, finding.heat_map).save(stream, "PNG")
        self.heat_maps.write(name, stream.getvalue())
        return name
