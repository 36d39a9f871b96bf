"""The page says what its sources say, and is safe whatever they hold."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError
from specpipe.schemas.records.artifact import VALIDATION_FILE
from specpipe.schemas.settings.stages import ReportConfig
from specpipe.stages.report.run import run as report
from tests.report.conftest import ATTACK, Finished, MakePage


class Page(HTMLParser):
    """Tags with their attributes, and the text of each table by its title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.text += data
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data.strip()

    def row(self, *starts: str) -> list[str]:
        """The only row that begins with these cells, without them."""
        found = [row for row in self.rows if tuple(row[: len(starts)]) == starts]
        assert len(found) == 1, (starts, found)
        return found[0][len(starts) :]


def test_figures_are_those_of_the_sources(make_page: MakePage, finished: Finished) -> None:
    page = Page(make_page())
    validation = json.loads((finished.artifact / VALIDATION_FILE).read_text("utf-8"))
    curve = validation["replay"]["artifact"]["replay_greedy"]
    shown = page.row("greedy (estimate)")
    assert shown == [
        f"{tau:.3f} ({low:.3f} to {high:.3f})"
        for tau, low, high in zip(curve["tau"], curve["tau_low"], curve["tau_high"], strict=True)
    ]
    result = json.loads((finished.run / "result.json").read_text("utf-8"))
    assert page.row("tokens trained on") == [f"{result['num_tokens']:,}"]
    assert page.row("steps")[0].startswith("4 of 4,")
    parameters = validation["structure"]["num_parameters"]
    assert f"{parameters:,} parameters" in page.row("structure", "passed")[0]
    assert page.row("because") == [validation["recommendation"]["because"]]
    (cost,) = (one["cost"] for one in validation["recommendation"]["speedups"])
    assert page.row("1", f"{cost['overhead']:.3f}") == [
        f"{cost['step_cost']:.3f}",
        f"{cost['idle']:.3f}",
        str(validation["recommendation"]["speedups"][0]["best"]),
    ]


def test_what_the_engine_measured_stands_beside(make_page: MakePage, served: Path) -> None:
    page = Page(make_page(artifact=str(served)))
    serve = json.loads((served / VALIDATION_FILE).read_text("utf-8"))["serve"]
    for run in serve["runs"]:
        for mode, title in (("greedy", "greedy"), ("temperature_1", "temperature 1")):
            found = run[mode]
            measured = f"{found['tau_measured']:.4f}"
            shown = page.row(str(run["num_draft_tokens"]), title, measured)
            assert shown[0] == f"{found['tau_replayed']:.4f}"
            assert shown[-1] == "yes"
    assert "vLLM, temperature 1" in page.text
    assert "batch size 4, measured in vLLM" in page.text
    assert "No engine was measured" not in page.text


def test_text_cannot_leave_its_place(make_page: MakePage, finished: Finished) -> None:
    html = make_page()
    page = Page(html)
    assert {"script", "img", "i", "b", "iframe", "object", "link"}.isdisjoint(
        tag for tag, _ in page.tags
    )
    assert not [
        (tag, name)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name.startswith("on") or (value or "").lower().startswith(("http:", "https:", "data:"))
    ]
    assert re.findall(r"(?:url|@import)\s*\(?", html) == []
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    # Of a long prompt the end is shown.
    assert f"{ATTACK[-50:]}<|end|>" in page.text
    assert "target<i>" in page.text
    assert str(finished.dump) in page.text


def test_the_same_sources_make_the_same_bytes(make_page: MakePage) -> None:
    assert make_page() == make_page()


def test_what_is_not_there_is_said(make_page: MakePage, finished: Finished, tmp_path: Path) -> None:
    page = Page(make_page(artifact=None, samples=0))
    assert "No export was given (--artifact)" in page.text
    assert "No sample was to be drafted (--samples 0)." in page.text
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text("utf-8"))
    (run / "config.json").write_text(json.dumps(config | {"dump": str(tmp_path / "gone")}))
    page = Page(make_page(run=str(run), artifact=None))
    assert "The dump cannot be read now" in page.text
    assert "No sample was drafted." in page.text
    without = Path(shutil.copytree(finished.artifact, tmp_path / "artifact"))
    found = json.loads((without / VALIDATION_FILE).read_text("utf-8"))
    (without / VALIDATION_FILE).write_text(json.dumps(found | {"recommendation": None}))
    assert "The export has not come to its end." in Page(make_page(artifact=str(without))).text


def test_a_failed_validation_is_seen(make_page: MakePage, served: Path) -> None:
    found = json.loads((served / VALIDATION_FILE).read_text("utf-8"))
    found |= {"passed": False, "problems": [f"lm_head has {ATTACK}"]}
    found["serve"]["runs"][0]["greedy"] |= {"passed": False}
    (served / VALIDATION_FILE).write_text(json.dumps(found))
    page = Page(make_page(artifact=str(served)))
    assert "FAILED" in page.text
    assert f"lm_head has {ATTACK}" in page.text
    measured = f"{found['serve']['runs'][0]['greedy']['tau_measured']:.4f}"
    assert page.row("1", "greedy", measured)[-1] == "NO"


def test_findings_of_the_replay(make_page: MakePage, served: Path) -> None:
    """As they are written today, and as the version before did."""
    found = json.loads((served / VALIDATION_FILE).read_text("utf-8"))
    today = Page(make_page(artifact=str(served))).row("replay", "passed")[-1]
    starts = found["replay"]["agreement"]["num_starts"]
    assert f"held against the trainer's code at {starts:,} starts" in today
    assert "rounding changed tau: temperature 1" in today
    for name in ("agreement", "rounding", "recorded_tau"):
        del found["replay"][name]
    found["replay"] |= {"tolerance": 0.002, "largest_difference": 1e-4}
    (served / VALIDATION_FILE).write_text(json.dumps(found))
    before = Page(make_page(artifact=str(served))).row("replay", "passed")[-1]
    assert "tau of the exported files is within 0.010% of the trained drafter's" in before


def test_wrong_sources_are_refused(finished: Finished, tmp_path: Path) -> None:
    out = str(tmp_path / "page.html")
    with pytest.raises(ConfigError, match="is no run directory of `specpipe train`"):
        report(ReportConfig(run=str(finished.artifact), out=out))
    with pytest.raises(ConfigError, match="is no folder of an export"):
        report(ReportConfig(run=str(finished.run), artifact=str(finished.run), out=out))
    artifact = Path(shutil.copytree(finished.artifact, tmp_path / "artifact"))
    path = artifact / VALIDATION_FILE
    text = path.read_text("utf-8")
    path.write_text(text[: len(text) // 2])
    with pytest.raises(IntegrityError, match=r"validation\.json is damaged"):
        report(ReportConfig(run=str(finished.run), artifact=str(artifact), out=out))
    other = json.loads(text)
    other["checkpoint_sha256"] = dict.fromkeys(other["checkpoint_sha256"], "0" * 64)
    path.write_text(json.dumps(other))
    with pytest.raises(IdentityError, match="give the --artifact of this run"):
        report(ReportConfig(run=str(finished.run), artifact=str(artifact), out=out))
    (tmp_path / "file").write_text("")
    for place, says in (("file/page.html", "is a file"), ("", "folder"), ("new/", "folder")):
        with pytest.raises(ConfigError, match=says):
            report(ReportConfig(run=str(finished.run), out=f"{tmp_path}/{place}"))
    assert not Path(out).exists()
