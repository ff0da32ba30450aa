"""Is an ONNX graph harmless, and made for these weights? Asked before ONNX Runtime sees it, without the onnx package.

A graph may name files to read and operators of other libraries. Accepted is one whose operators are of the standard
domain, without inner graphs (loops and branches), and whose weights lie in the one safetensors file, each exactly
where the header has a tensor of that type and shape. The few messages of ``onnx.proto`` that say so are read here by
the rules of the protobuf wire format (https://protobuf.dev/programming-guides/encoding); a field that comes twice is
looked at twice, because parsers merge them.
"""

from collections.abc import Iterator

from .layout import WEIGHTS, FolderRefused, Tensors

MAX_GRAPH = 64 << 20  # bytes; the embedded models have 0.2 MB
STANDARD = ("", "ai.onnx")
TYPES = {1: "F32", 2: "U8", 3: "I8", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64"}
"""TensorProto.DataType as safetensors calls it."""

# field numbers of onnx.proto
MODEL_GRAPH, MODEL_OPSETS, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
NODE_ATTRIBUTE, NODE_DOMAIN, NODE_KIND = 5, 7, 4
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 8, 13, 14


def check_graph(graph: bytes, weights: Tensors, file: str = WEIGHTS) -> None:
    """Refuse a graph that may not be run, or that does not belong to these weights.

    Args:
        graph: contents of an ONNX file.
        weights: the safetensors file it refers to.
        file: the name by which it does so.

    Raises:
        FolderRefused: damaged, too large, with operators of other domains, inner graphs or functions, or with data
            anywhere but in tensors of the weights.
    """
    if len(graph) > MAX_GRAPH:
        raise FolderRefused(f"The graph has more than {MAX_GRAPH >> 20} MiB. Fetch the folder again.")
    places = {tensor.start: tensor for tensor in weights.header.values() if tensor.stop > tensor.start}
    try:
        graphs = [value for number, value in _fields(graph) if _model_field(number, value)]
        if not graphs:
            raise ValueError("it holds no graph")
        for inner in graphs:
            _check_nodes(inner, places, file)
    except (ValueError, IndexError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise FolderRefused(
            f"The graph over {file} is not accepted: {error}. Fetch the folder again, or write its graph anew: "
            "`covid-xct graph FOLDER`."
        ) from error


def _model_field(number: int, value: bytes | int) -> bool:
    """Say whether a field of the model is its graph; raise for one that is not accepted."""
    if number in (MODEL_TRAINING, MODEL_FUNCTIONS):
        raise ValueError("it brings functions or training steps of its own")
    if number == MODEL_OPSETS:
        _check_domains(value, 1, "a set of operators")
    return number == MODEL_GRAPH


def _check_domains(message: bytes, field: int, what: str) -> None:
    for number, value in _fields(message):
        if number == field and (domain := value.decode()) not in STANDARD:
            raise ValueError(f"{what} of the domain {domain[:50]!r}, which is not the standard one")


def _check_nodes(graph: bytes, places: dict, file: str) -> None:
    for number, value in _fields(graph):
        if number == GRAPH_SPARSE:
            raise ValueError("it has sparse weights")
        if number == GRAPH_INITIALIZER:
            _check_tensor(value, places, file)
        if number != GRAPH_NODE:
            continue
        kind = b"".join(part for field, part in _fields(value) if field == NODE_KIND).decode()
        _check_domains(value, NODE_DOMAIN, f"an operator {kind[:50]!r}")
        for field, attribute in _fields(value):
            if field != NODE_ATTRIBUTE:
                continue
            for at, inner in _fields(attribute):
                if at in ATTRIBUTE_GRAPHS or at in ATTRIBUTE_SPARSE:
                    raise ValueError(f"its operator {kind[:50]!r} has an inner graph or sparse weights")
                if at in ATTRIBUTE_TENSORS:
                    _check_tensor(inner, {}, file)


def _check_tensor(tensor: bytes, places: dict, file: str) -> None:
    """Check that a tensor holds its own values, or says where in the weights they lie."""
    dims, kind, name, external, elsewhere = [], None, "", {}, 0
    for number, value in _fields(tensor):
        if number == TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == TENSOR_TYPE:
            kind = TYPES.get(value)
        elif number == TENSOR_NAME:
            name = value.decode()[:100]
        elif number == TENSOR_LOCATION:
            elsewhere = value
        elif number == TENSOR_EXTERNAL:
            entry = {field: part.decode() for field, part in _fields(value)}
            if entry.get(1) in external or len(entry) != 2:
                raise ValueError(f"{name or 'a tensor'} says twice where its values lie")
            external[entry[1]] = entry[2]
    if not external and not elsewhere:
        return
    if set(external) != {"location", "offset", "length"} or external["location"] != file:
        raise ValueError(
            f"{name or 'a tensor'} wants its values from {external.get('location', 'nowhere')[:100]!r}; accepted is "
            f"{file} of the same folder, with offset and length"
        )
    start, length = (int(external[key]) if external[key].isascii() and external[key].isdigit() else -1
                     for key in ("offset", "length"))  # fmt: skip
    place = places.get(start)
    if place is None or (place.stop - start, place.shape, place.kind) != (length, tuple(dims), kind):
        raise ValueError(
            f"{name or 'a tensor'} wants {length} bytes at {start} of {file} as {kind} {dims}, where no such tensor "
            "lies: graph and weights do not belong together"
        )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field; bytes for texts, inner messages and packed numbers."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 2, 5):
            length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError("it is cut short")
        else:
            raise ValueError("it is damaged")
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("it is damaged")


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value
