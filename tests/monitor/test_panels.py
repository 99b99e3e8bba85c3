import json
from pathlib import Path

import pytest

from harness.monitor.panels import GPU_ONLY, PanelQuery, fill, panel_queries


def test_queries_of_all_panels(tmp_path: Path) -> None:
    inner = {"title": "B", "type": "stat", "description": f"{GPU_ONLY} Warm.", "targets": [{"expr": "y[$__range]"}]}
    panels = [
        {"title": "Row", "type": "row", "panels": [inner]},
        {
            "title": "A",
            "type": "timeseries",
            "description": "",
            "targets": [{"expr": 'rate(x{run="${run}"}[$__rate_interval])'}],
        },
    ]
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"panels": panels}))
    assert panel_queries(path, "smol", rate_interval="20s", time_range="2h") == [
        PanelQuery("B", "y[2h]", True),
        PanelQuery("A", 'rate(x{run="smol"}[20s])', False),
    ]


def test_unknown_variable() -> None:
    with pytest.raises(ValueError, match="node"):
        fill('x{run="$run", node="$node"}', {"run": "a"})
