"""The headers of a chain's updates, coded: SVT-AV1 takes 17 bytes of 97 for them and says nearly the same every time.

Where an update stands in its chain, which is what the first 48 bits of its AV1 frame header say, follows from its
number. The fields behind them are coded one by one, each against the same field of the two updates before, with
frequencies fitted on real streams (``frame_header.json``, by export/fit_frame_header.py). Nothing is lost whatever the
header: at a field that says something unexpected the walk ends, and what is left stays in the bytes behind. FORMAT.md
section 7.2. Knows no pictures and no packets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import constriction

from .entropy import range_decoder, row_model, shortest
from .errors import BitstreamError

TABLE = Path(__file__).with_suffix(".json")
FRONT = 48  # bits, up to the last ref_frame_idx; the fields begin behind them
HINT_SHIFT = 33  # of order_hint, 7 bits, in the front
OTHER, PLAIN = 2, 3  # kinds of header: with a front as of fast presets (0), of slow ones (1), another; not coded
LONGEST = 32  # bytes: no walk goes further
ONCE, PERIOD = 12, 12  # the fronts of updates 1 to 12 come once, those of 13 to 24 again and again
MASKED = 4  # place of enable_masked_compound among the flags
DIRECT = 2  # bits of a field coded given what it was in both updates before; of larger ones it is told first
AS_OLDER, AS_LAST, NEW = range(3)  # a field against those of the update before last and of the last one
LIKE = {"level_1": "level_0", "level_v": "level_u"}  # nearer to a field of the same header than to the last one's

_FIELDS = {  # by their bits, its names as in AV1 5.9; "zero" is what fills the last byte of a header
    1: (
        "render_and_frame_size_different allow_high_precision_mv is_filter_switchable is_motion_mode_switchable "
        "use_ref_frame_mvs disable_frame_end_update_cdf uniform_tile_spacing_flag increment_tile_cols_log2 "
        "increment_tile_rows_log2 delta_coded_y diff_uv_delta delta_coded_uv using_qmatrix segmentation_enabled "
        "delta_q_present loop_filter_delta_enabled loop_filter_delta_update lr_unit_shift lr_unit_extra_shift "
        "lr_uv_shift tx_mode_select reference_select skip_mode_present allow_warped_motion reduced_tx_set is_global_1 "
        "is_global_2 is_global_3 is_global_4 is_global_5 is_global_6 is_global_7 zero"
    ),
    2: (
        "interpolation_filter cdef_damping cdef_bits cdef_y_sec_first cdef_y_sec_more cdef_uv_sec_first "
        "cdef_uv_sec_more lr_type_y lr_type_u lr_type_v"
    ),
    3: "sharpness_level",
    4: "cdef_y_pri_first cdef_y_pri_more cdef_uv_pri_first cdef_uv_pri_more",
    6: "level_0 level_1 level_u level_v",
    8: "base_q_idx",
}
BITS = {name: bits for bits, names in _FIELDS.items() for name in names.split()}

Field = Callable[[str], int]  # its name to its value
Rows = Mapping[str, Any]


class HeaderCoder:
    """One chain's, at either end: its updates go through in their order.

    size: of the pictures, pixels. flags: of the chain's key, 13 bits (FORMAT.md section 7.1).
    """

    def __init__(self, size: int, flags: int, table: HeaderTable | None = None) -> None:
        self.table = table or _bundled()
        self._size, self._flags = size, [bool(flags >> bit & 1) for bit in range(12, -1, -1)]
        self._number, self._kind = 1, PLAIN  # number of the next update, kind of the last one
        self._older: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def shorten(self, frame: bytes) -> bytes:
        """The payload of an update's frame OBU with its header coded."""
        port = HeaderWriter(frame, self.kind_of(frame))
        values, head = self.code(port), port.coded()
        if len(head) > port.at // 8:  # a header that none of our encoders writes
            port = HeaderWriter(frame, PLAIN)
            values, head = self.code(port), port.coded()
        self.advance(port.kind, values)
        return head + frame[port.at // 8 :]

    def restore(self, coded: bytes) -> bytes:
        """Inverse of :meth:`shorten`. Raises BitstreamError for bytes that are no code, and changes nothing then."""
        port = _Reader(coded)
        values, head = self.code(port), port.coded()
        if not coded.startswith(head):
            raise BitstreamError("The header of the update is damaged: its code does not end as codes do.")
        self.advance(port.kind, values)
        return port.header() + coded[len(head) :]

    def kind_of(self, frame: bytes) -> int:
        """What the next update is coded as."""
        port = HeaderWriter(frame, OTHER)
        front = port.ahead(FRONT)
        port.at = FRONT

        def field(name: str) -> int:
            value = port.ahead(BITS[name])
            port.at += BITS[name]
            return value

        walk(field, self._size, self._flags)
        if port.at > 8 * len(frame):  # it ends before its header does: no AV1 frame
            return PLAIN
        return next((kind for kind in range(OTHER) if self.table.front(kind, self._number) == front), OTHER)

    def code(self, port: HeaderPort) -> dict[str, int]:
        """The next header, up to the end of a byte, through a port; what its fields are."""
        values: dict[str, int] = {}
        port.kind = port.symbol(self.table.kinds[self._kind], port.kind)
        if port.kind == PLAIN:
            return values
        if port.kind == OTHER:
            for _ in range(FRONT // 8):
                port.raw(8)
        else:
            port.put(self.table.front(port.kind, self._number), FRONT)
        rows = self.table.rows[self._flags[MASKED]]

        def field(name: str) -> int:
            last = values[LIKE[name]] if name in LIKE else self._last.get(name, 0)
            values[name] = port.field(rows[name], BITS[name], self._older.get(name, 0), last)
            return values[name]

        complete = walk(field, self._size, self._flags)
        while port.at % 8:
            if complete:
                port.field(rows["zero"], 1, 0, 0)
            else:
                port.raw(1)
        return values

    def advance(self, kind: int, values: dict[str, int]) -> None:
        """That header was the one, and the next comes."""
        self._number, self._kind = self._number + 1, kind
        self._older, self._last = self._last, values


def walk(field: Field, size: int, flags: Sequence[bool]) -> bool:
    """The fields of an inter frame's header behind the front, in the order of AV1 5.9.2; whether they came to its end,
    and not to something unexpected."""
    large, *_, warped, _, _, vectors, superres, cdef, restoration, separate = flags
    if superres or field("render_and_frame_size_different"):
        return False
    field("allow_high_precision_mv")
    if not field("is_filter_switchable"):
        field("interpolation_filter")
    field("is_motion_mode_switchable")
    if vectors:
        field("use_ref_frame_mvs")
    field("disable_frame_end_update_cdf")
    if not field("uniform_tile_spacing_flag"):
        return False
    if size > (128 if large else 64) and (field("increment_tile_cols_log2") or field("increment_tile_rows_log2")):
        return False
    if not field("base_q_idx") or field("delta_coded_y"):
        return False
    different = separate and field("diff_uv_delta")
    if any(field("delta_coded_uv") for _ in range(4 if different else 2)):
        return False
    if field("using_qmatrix") or field("segmentation_enabled") or field("delta_q_present"):
        return False
    if field("level_0") | field("level_1"):
        field("level_u")
        field("level_v")
    field("sharpness_level")
    if field("loop_filter_delta_enabled") and field("loop_filter_delta_update"):
        return False
    if cdef:
        field("cdef_damping")
        for index in range(1 << field("cdef_bits")):
            which = "first" if not index else "more"
            field(f"cdef_y_pri_{which}")
            field(f"cdef_y_sec_{which}")
            field(f"cdef_uv_pri_{which}")
            field(f"cdef_uv_sec_{which}")
    if restoration:
        luma, chroma = field("lr_type_y"), field("lr_type_u") | field("lr_type_v")
        if luma or chroma:
            if field("lr_unit_shift") and not large:
                field("lr_unit_extra_shift")
            if chroma:
                field("lr_uv_shift")
    field("tx_mode_select")
    if field("reference_select"):
        field("skip_mode_present")
    if warped:
        field("allow_warped_motion")
    field("reduced_tx_set")
    return not any(field(f"is_global_{index}") for index in range(1, 8))


class HeaderPort:
    """One direction of coding. kind: of the header. at: its bits that have passed."""

    def __init__(self, kind: int | None) -> None:
        self.kind: Any = kind  # None until it has been read
        self.at = 0
        self.coder = constriction.stream.queue.RangeEncoder()  # a reader's, too: it tells where the code ends

    def coded(self) -> bytes:
        """The code of all symbols up to here."""
        return shortest(self.coder, followed=True)

    def ahead(self, bits: int) -> int | None:
        """What comes next in the header; None where it has to be read first."""
        raise NotImplementedError

    def symbol(self, row: Any, value: int | None) -> int:
        """Code a symbol; its value."""
        raise NotImplementedError

    def put(self, value: int, bits: int) -> None:
        """The next bits of the header."""
        self.at += bits

    def raw(self, bits: int) -> None:
        self.put(self.symbol(_UNIFORM[bits], self.ahead(bits)), bits)

    def field(self, rows: Rows, bits: int, older: int, last: int) -> int:
        value = self.ahead(bits)
        if bits <= DIRECT:
            value = self.symbol(rows["value"][older << bits | last], value)
        else:
            how = None if value is None else AS_OLDER if value == older else AS_LAST if value == last else NEW
            how = self.symbol(rows["how"][older == last], how)
            value = older if how == AS_OLDER else last if how == AS_LAST else self.symbol(rows["value"], value)
        self.put(value, bits)
        return value


class HeaderWriter(HeaderPort):
    def __init__(self, frame: bytes, kind: int) -> None:
        super().__init__(kind)
        self._bits = "".join(f"{byte:08b}" for byte in frame[:LONGEST])

    def ahead(self, bits: int) -> int:
        return int(self._bits[self.at : self.at + bits].ljust(bits, "0"), 2)

    def symbol(self, row: Any, value: int | None) -> int:
        assert value is not None
        self.coder.encode(value, row)
        return value


class _Reader(HeaderPort):
    def __init__(self, coded: bytes) -> None:
        super().__init__(None)
        self._decoder = range_decoder(coded)
        self._value = 0

    def ahead(self, bits: int) -> None:
        return None

    def symbol(self, row: Any, value: int | None) -> int:
        try:
            value = int(self._decoder.decode(row))
        except (AssertionError, ValueError) as problem:
            raise BitstreamError("The header of the update is damaged: it is no code word of its table.") from problem
        self.coder.encode(value, row)
        return value

    def put(self, value: int, bits: int) -> None:
        super().put(value, bits)
        self._value = self._value << bits | value

    def header(self) -> bytes:
        return self._value.to_bytes(self.at // 8, "big")


class HeaderTable:
    """frame_header.json: the fronts, and the frequencies as models to code with."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._fronts = [[int(front, 16) for front in fronts] for fronts in table["fronts"]]
        self.kinds = _models(table["kinds"])  # by the kind of the update before
        self.rows = _models(table["fields"])  # by whether the chain's flags allow masked compounds: slow presets

    def front(self, kind: int, number: int) -> int:
        """The first 48 bits of an update, when it is of this kind."""
        place = number if number <= ONCE else ONCE + 1 + (number - ONCE - 1) % PERIOD
        return self._fronts[kind][place - 1] | (number & 127) << HINT_SHIFT


def _models(rows: Any) -> Any:
    if isinstance(rows, dict):
        return {name: _models(row) for name, row in rows.items()}
    return row_model(rows) if isinstance(rows[0], int) else [_models(row) for row in rows]


@cache
def _bundled() -> HeaderTable:
    return HeaderTable(json.loads(TABLE.read_text("utf-8")))


_UNIFORM = {bits: constriction.stream.model.Uniform(1 << bits) for bits in (1, 8)}
