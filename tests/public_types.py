"""The public interface as a user's type checker sees it; `make check` runs mypy over this file, nobody runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

from hub_model import AutoScreener, Finding, FolderRefused, Frame, ImageRefused, Refused, Screener

screener = Screener.from_pretrained(
    "ct", revision=None, backend="onnx", device="cpu", token=None, cache_dir=None
)
assert_type(screener, Screener)
assert_type(screener.path, Path)
assert_type(screener.modality, str)
assert_type(screener.config, dict[str, Any])
assert_type(screener.screening, dict[str, Any])
assert_type(screener.operating_points, dict[str, dict[str, Any]])

finding = screener.screen(Path("slice.dcm"), operating_point="balanced", heat_map=True, frame=0)
assert_type(finding, Finding)
assert_type(finding.decision, str)
assert_type(finding.probability, float | None)
assert_type(finding.threshold, float)
assert_type(finding.reasons, tuple[str, ...])
assert_type(finding.codes, tuple[str, ...])
assert_type(finding.to_dict(heat_map=True), dict[str, Any])
assert_type(finding.to_json(), str)

sources = [b"", "slice.png", Path("slice.dcm"), Frame("series.dcm", 3)]
assert_type(screener.screen_many(sources, batch_size=8, workers=2), Iterator[Finding])

either = AutoScreener.from_pretrained("xray", "ct")
assert_type(either, AutoScreener)
assert_type(either.screen("slice.png"), Finding)
assert_type(either.choose("slice.png"), Screener)
assert_type(either.screen_many(sources), Iterator[Finding])

try:
    screener.screen("slice.png")
except (ImageRefused, FolderRefused) as refused:
    base: Refused = refused
