"""The page's files: what was taken from others is what the list says, and nothing is loaded from
elsewhere."""

import hashlib
import json
import re
from pathlib import Path

import featurestore.explorer
from featurestore.explorer.security import HEADERS

PAGE = Path(featurestore.explorer.__file__).parent / "page"
OWN = [path for path in sorted(PAGE.rglob("*")) if path.is_file() and "vendor" not in path.parts]


def test_files_of_others_are_those_of_the_list():
    listed = json.loads((PAGE / "vendor/vendor.json").read_text())["files"]
    assert set(listed) == {path.name for path in PAGE.glob("vendor/*.js")}
    licences = (PAGE / "vendor/LICENSES.txt").read_text()
    for name, entry in listed.items():
        assert (
            hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == entry["sha256"]
        ), name
        for package in entry["packages"]:
            assert f"{package['name']} {package['version']} ({package['licence']})" in licences
            assert package["licence"] in {"MIT", "ISC", "Apache-2.0", "BSD-3-Clause"}
            assert package["integrity"].startswith("sha512-")


def test_the_pages_own_files_name_no_other_host():
    for path in OWN:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import", text), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|dangerously", text
        ), path


def test_every_import_is_a_file_of_the_page():
    for path in OWN:
        if path.suffix == ".js":
            for target in re.findall(
                r'(?:from|import)\s*\(?"(\.[^"]+)"', path.read_text(encoding="utf-8")
            ):
                assert (path.parent / target).resolve().is_file(), (path, target)


def test_the_page_is_written_without_inline_script_or_style():
    text = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert "script-src 'self';" in HEADERS["Content-Security-Policy"]


def test_the_page_is_part_of_what_is_installed():
    import tomllib

    root = PAGE.parent.parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    assert "explorer/page/**/*" in settings["tool"]["setuptools"]["package-data"]["featurestore"]
